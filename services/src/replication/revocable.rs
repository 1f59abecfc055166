//! Owns: a connection that ends when the certificate of its other end is revoked.
//!
//! What must hold: the end comes without traffic too, and while the other end does not read.

use std::io::{Error, ErrorKind, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// Ready once the certificate is revoked.
pub type Revoked = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The connection `stream`.
pub struct Revocable<S> {
    stream: S,
    /// `None` without revocation lists.
    revoked: Option<Revoked>,
    is_revoked: bool,
}

impl<S> Revocable<S> {
    /// The connection `stream`, which ends when `revoked` is ready.
    pub fn new(stream: S, revoked: Option<Revoked>) -> Revocable<S> {
        Revocable { stream, revoked, is_revoked: false }
    }

    /// Fails once the certificate is revoked. Before, `context` is woken when it is.
    fn check(&mut self, context: &mut Context<'_>) -> Result<(), Error> {
        if let Some(revoked) = &mut self.revoked
            && revoked.as_mut().poll(context).is_ready()
        {
            (self.revoked, self.is_revoked) = (None, true);
        }
        if self.is_revoked {
            return Err(Error::new(ErrorKind::ConnectionAborted, "the certificate of the other end was revoked"));
        }
        Ok(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Revocable<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<Result<(), Error>> {
        let this = self.get_mut();
        this.check(context)?;
        Pin::new(&mut this.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Revocable<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize, Error>> {
        let this = self.get_mut();
        this.check(context)?;
        Pin::new(&mut this.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(self: Pin<&mut Self>, context: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<Result<usize, Error>> {
        let this = self.get_mut();
        this.check(context)?;
        Pin::new(&mut this.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let this = self.get_mut();
        this.check(context)?;
        Pin::new(&mut this.stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let this = self.get_mut();
        this.check(context)?;
        Pin::new(&mut this.stream).poll_shutdown(context)
    }
}

impl<S: Connected> Connected for Revocable<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::oneshot;

    use super::*;

    fn pair() -> (Revocable<tokio::io::DuplexStream>, tokio::io::DuplexStream, oneshot::Sender<()>) {
        let (near, far) = tokio::io::duplex(64);
        let (sender, revoked) = oneshot::channel();
        let revoked = async move { revoked.await.unwrap_or_default() };
        (Revocable::new(near, Some(Box::pin(revoked))), far, sender)
    }

    /// What `task` returns; a connection that does not end fails the test.
    async fn soon<T>(task: tokio::task::JoinHandle<T>) -> T {
        tokio::time::timeout(std::time::Duration::from_secs(10), task).await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn a_connection_whose_certificate_is_revoked_ends_while_it_waits_to_read_and_stays_ended() {
        let (mut near, mut far, sender) = pair();
        far.write_all(b"before").await.unwrap();
        let mut read = [0; 6];
        near.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"before");
        let waiting = tokio::spawn(async move {
            let ended = near.read(&mut [0; 8]).await;
            (near, ended)
        });
        tokio::task::yield_now().await;
        sender.send(()).unwrap();
        let (mut near, ended) = soon(waiting).await;
        assert!(ended.unwrap_err().to_string().contains("revoked"));
        far.write_all(b"after").await.unwrap();
        assert!(near.read(&mut [0; 8]).await.is_err() && near.write(b"more").await.is_err() && near.flush().await.is_err());
    }

    #[tokio::test]
    async fn a_connection_whose_certificate_is_revoked_ends_while_the_other_end_does_not_read() {
        let (mut near, _far, sender) = pair();
        let writing = tokio::spawn(async move { near.write_all(&[7; 1000]).await });
        tokio::task::yield_now().await;
        sender.send(()).unwrap();
        assert!(soon(writing).await.unwrap_err().to_string().contains("revoked"));
    }
}
