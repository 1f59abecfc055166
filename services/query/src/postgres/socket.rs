//! Owns: a client's socket with limits: how long a message may be, and how long the client may leave what is sent unread.
//!
//! What must hold: a client cannot make the server keep more than one message of a bounded length. A client that reads nothing
//! loses its connection after a while, and its statement with it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::unread::Unread;

/// Bytes of a message before a client has logged in.
const FIRST_MAX: usize = 64 << 10;
/// Bytes of a message.
const MESSAGE_MAX: usize = 16 << 20;

/// A socket with limits.
pub(super) struct Guarded<S> {
    socket: Unread<S>,
    read: usize,
    is_trusted: bool,
}

impl<S> Guarded<S> {
    /// `socket`, whose client may leave bytes unread for the time `unread`.
    pub(super) fn new(socket: S, unread: Duration) -> Guarded<S> {
        Guarded { socket: Unread::new(socket, unread), read: 0, is_trusted: false }
    }

    /// A new message begins.
    pub(super) fn begin(&mut self, is_trusted: bool) {
        self.read = 0;
        self.is_trusted = is_trusted;
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let max = if self.is_trusted { MESSAGE_MAX } else { FIRST_MAX };
        if self.read > max {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, format!("a message has more than {max} bytes"))));
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.socket).poll_read(context, buf);
        self.read += buf.filled().len() - before;
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}
