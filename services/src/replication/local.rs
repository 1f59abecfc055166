//! Owns: mutual authentication of processes of one user on one machine, for hosts without certificates.
//!
//! ```text
//! client: "TAPELOC1" · nonce 32 B
//! server: 1 · node u64 · cluster u128 · nonce 32 B · length u16 · path of its key     or 2 · length u16 · reason
//! client: HMAC of both nonces, node and cluster, as the client
//! server: 1 · the same as the server                                                  or 2 · length u16 · reason
//! ```
//!
//! The key is the file [`NAME`] in the server's store. Only the store's owner and root can read it. The path that the server
//! sends is not trusted: a key counts only if it belongs to the client's user (or to the owner of the store that the client
//! works on) and nobody else may read it.
//!
//! What must hold: nothing is accepted from the other end, and nothing else is sent to it, before both ends have proved
//! that they have the key; a proof is for one connection and one host, so it cannot be replayed to another; malformed bytes
//! end the connection; every wait has a deadline.

use std::io::{Error, ErrorKind, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ring::hmac;
use tapestore::lsn::NodeId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};

/// Name of the key file in the store directory.
pub const NAME: &str = "local.key";
const KEY_MAGIC: &[u8; 8] = b"TAPEKEY1";
const KEY_LEN: usize = 40;
/// First bytes of a client.
pub const HELLO: &[u8; 8] = b"TAPELOC1";
const NONCE: usize = 32;
const GOES_ON: u8 = 1;
const REFUSED: u8 = 2;
/// Most bytes of a path and of a refusal's reason.
const PATH_MAX: usize = 4096;
const REFUSAL_MAX: usize = 1024;
/// How long a client waits for the server.
const PATIENCE: Duration = Duration::from_secs(2);
const CLIENT: &[u8] = b"tapestore client";
const SERVER: &[u8] = b"tapestore server";

/// Identity of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// Its node number.
    pub node: NodeId,
    /// Its cluster.
    pub cluster: u128,
}

/// The host that a client expects.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Its identity, if the client has it.
    pub host: Option<Host>,
    /// The client's store: keys of its owner count too.
    pub store: PathBuf,
}

fn other(why: impl Into<String>) -> Error {
    Error::new(ErrorKind::PermissionDenied, why.into())
}

/// Reads the key in the file `path`, which must belong to one of `owners` and be readable by nobody else.
fn read_key(path: &Path, owners: &[u32]) -> Result<hmac::Key, Error> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let file = std::fs::File::options().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    let found = file.metadata()?;
    let is_closed = found.is_file() && found.mode() & 0o077 == 0 && owners.contains(&found.uid());
    if !is_closed || found.len() != KEY_LEN as u64 {
        return Err(other("it must be a file of this user with mode 0600, as tape-replication creates it"));
    }
    let mut bytes = Vec::with_capacity(KEY_LEN);
    file.take(KEY_LEN as u64).read_to_end(&mut bytes)?;
    let secret = bytes.strip_prefix(KEY_MAGIC).filter(|s| s.len() == KEY_LEN - KEY_MAGIC.len());
    let secret =
        secret.ok_or_else(|| other("it is not a key of tape-replication; remove it, and tape-replication creates one"))?;
    Ok(hmac::Key::new(hmac::HMAC_SHA256, secret))
}

/// The key of `store` and its path; created if absent.
fn own_key(store: &Path) -> Result<(PathBuf, hmac::Key), Error> {
    let path = store.canonicalize()?.join(NAME);
    let named = |e: Error| Error::new(e.kind(), format!("{}: {e}", path.display()));
    if !path.try_exists().map_err(named)? {
        let part = path.with_extension(format!("{}.part", std::process::id()));
        let mut bytes = KEY_MAGIC.to_vec();
        bytes.extend(nonce()?);
        let mut file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(&part)?;
        let made = file.write_all(&bytes).and_then(|()| match std::fs::hard_link(&part, &path) {
            // Another process created one in the meantime.
            Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
            linked => linked,
        });
        std::fs::remove_file(&part)?;
        made.map_err(named)?;
    }
    let owners = [rustix::process::geteuid().as_raw(), store.metadata()?.uid()];
    let key = read_key(&path, &owners).map_err(named)?;
    Ok((path, key))
}

fn nonce() -> Result<[u8; NONCE], Error> {
    let mut nonce = [0; NONCE];
    let mut filled = 0;
    while let Some(rest) = nonce.get_mut(filled..).filter(|r| !r.is_empty()) {
        filled += rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(nonce)
}

/// The bytes that a proof signs: the end that signs, both nonces of the connection, the server's identity.
fn signed(role: &[u8], nonces: [&[u8; NONCE]; 2], host: Host) -> Vec<u8> {
    let [client, server] = nonces;
    [role, client, server, &host.node.0.to_le_bytes(), &host.cluster.to_le_bytes()].concat()
}

async fn read<const N: usize>(stream: &mut TcpStream) -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// Bytes after their length.
async fn read_some(stream: &mut TcpStream, most: usize) -> Result<Vec<u8>, Error> {
    let len = usize::from(u16::from_le_bytes(read(stream).await?));
    if len > most {
        return Err(Error::new(ErrorKind::InvalidData, format!("a length of {len} bytes, over the limit of {most}")));
    }
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// Sends a refusal with its reason.
pub async fn refuse(stream: &mut TcpStream, why: &str) -> Result<(), Error> {
    let text = why.as_bytes().get(..REFUSAL_MAX).unwrap_or(why.as_bytes());
    let mut bytes = vec![REFUSED];
    bytes.extend((text.len() as u16).to_le_bytes());
    bytes.extend(text);
    stream.write_all(&bytes).await
}

/// Authenticates a client at the server, which is `host` with its store, if storage is connected. The caller sets a deadline.
///
/// # Errors
/// The reason for the refusal.
pub async fn admit(mut stream: TcpStream, host: Option<(Host, PathBuf)>) -> Result<TcpStream, Error> {
    if read::<{ HELLO.len() }>(&mut stream).await? != *HELLO {
        return Err(other("the client is not a tapestore process of this release"));
    }
    let client: [u8; NONCE] = read(&mut stream).await?;
    let Some((host, store)) = host else {
        let why = "no storage process serves the store of that host";
        refuse(&mut stream, why).await?;
        return Err(other(why));
    };
    let (path, key) = match own_key(&store) {
        Ok(own) => own,
        Err(error) => {
            refuse(&mut stream, "that host cannot read its key; its log has the reason").await?;
            return Err(error);
        }
    };
    let server = nonce()?;
    let path = path.as_os_str().as_bytes();
    let mut challenge = vec![GOES_ON];
    challenge.extend(host.node.0.to_le_bytes());
    challenge.extend(host.cluster.to_le_bytes());
    challenge.extend(server);
    challenge.extend((path.len().min(PATH_MAX) as u16).to_le_bytes());
    challenge.extend(path.iter().take(PATH_MAX));
    stream.write_all(&challenge).await?;
    let proof: [u8; 32] = read(&mut stream).await?;
    if hmac::verify(&key, &signed(CLIENT, [&client, &server], host), &proof).is_err() {
        refuse(&mut stream, "the key does not match").await?;
        return Err(other("the client does not have this store's key"));
    }
    let mut answer = vec![GOES_ON];
    answer.extend(hmac::sign(&key, &signed(SERVER, [&client, &server], host)).as_ref());
    stream.write_all(&answer).await?;
    Ok(stream)
}

/// Reads whether the server continues or refuses.
async fn read_status(stream: &mut TcpStream) -> Result<(), Error> {
    match read::<1>(stream).await? {
        [GOES_ON] => Ok(()),
        [REFUSED] => Err(other(String::from_utf8_lossy(&read_some(stream, REFUSAL_MAX).await?).into_owned())),
        _ => Err(other("the server is not a tapestore host of this release")),
    }
}

/// Authenticates at a server, which must be `wanted`.
async fn prove(stream: &mut TcpStream, wanted: &Wanted) -> Result<(), Error> {
    let client = nonce()?;
    stream.write_all(&[&HELLO[..], &client].concat()).await?;
    read_status(stream).await?;
    let node = NodeId(u64::from_le_bytes(read(stream).await?));
    let host = Host { node, cluster: u128::from_le_bytes(read(stream).await?) };
    let server: [u8; NONCE] = read(stream).await?;
    let path = PathBuf::from(std::ffi::OsString::from_vec(read_some(stream, PATH_MAX).await?));
    if let Some(expected) = wanted.host.filter(|h| *h != host) {
        let (node, cluster) = (expected.node, expected.cluster);
        return Err(other(format!("expected node {node} of cluster {cluster:032x}, but it is node {}", host.node)));
    }
    let mut owners = vec![rustix::process::geteuid().as_raw()];
    owners.extend(wanted.store.metadata().ok().map(|m| m.uid()));
    let key = read_key(&path, &owners).map_err(|e| {
        other(format!(
            "without certificates only processes of one user on one machine can connect, and the key of that host, {}, does \
             not prove it: {e}. Start both with --tls-cert, --tls-key and --tls-ca",
            path.display()
        ))
    })?;
    stream.write_all(hmac::sign(&key, &signed(CLIENT, [&client, &server], host)).as_ref()).await?;
    read_status(stream).await?;
    let proof: [u8; 32] = read(stream).await?;
    let proved = hmac::verify(&key, &signed(SERVER, [&client, &server], host), &proof);
    proved.map_err(|_| other("the server does not have the key that it names"))
}

/// Connects `endpoint` to the host at `address` on this machine, which must be `wanted`.
///
/// # Errors
/// The connection or the authentication failed; see [`super::tls::why`].
pub async fn connect(endpoint: Endpoint, address: String, wanted: Wanted) -> Result<Channel, tonic::transport::Error> {
    let connector = tower::service_fn(move |_| {
        let (address, wanted) = (address.clone(), wanted.clone());
        async move {
            let dialled = async {
                let mut stream = TcpStream::connect(&address).await?;
                stream.set_nodelay(true)?;
                prove(&mut stream, &wanted).await.map(|()| hyper_util::rt::TokioIo::new(stream))
            };
            let late = |_| Error::new(ErrorKind::TimedOut, "no answer");
            tokio::time::timeout(PATIENCE, dialled).await.map_err(late)?
        }
    });
    endpoint.connect_with_connector(connector).await
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const HOST: Host = Host { node: NodeId(2), cluster: 7 };

    /// Connects a client that expects `wanted` to a server of the store `store`; the results of both ends.
    async fn meet(store: &Path, host: Host, wanted: Option<Host>) -> (Result<TcpStream, Error>, Result<(), Error>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let wanted = Wanted { host: wanted, store: PathBuf::new() };
        let proof = async {
            let proved = prove(&mut client, &wanted).await;
            // A refused client closes its end.
            drop(client);
            proved
        };
        tokio::join!(admit(server, Some((host, store.to_path_buf()))), proof)
    }

    #[tokio::test]
    async fn both_ends_prove_that_they_have_the_key_and_which_host_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let (server, client) = meet(dir.path(), HOST, Some(HOST)).await;
        assert!(server.is_ok() && client.is_ok(), "{server:?} {client:?}");
        let (server, client) = meet(dir.path(), HOST, None).await;
        assert!(server.is_ok() && client.is_ok(), "without an expectation any host will do");
        let mode = dir.path().join(NAME).metadata().unwrap().mode() & 0o777;
        assert_eq!(mode, 0o600);
        // The proof of node 3 is not valid for node 2.
        let other = Host { node: NodeId(3), ..HOST };
        let (server, client) = meet(dir.path(), other, Some(HOST)).await;
        assert!(server.is_err() && client.unwrap_err().to_string().contains("it is node 3"));
    }

    #[tokio::test]
    async fn a_key_that_others_may_read_or_that_is_malformed_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        meet(dir.path(), HOST, None).await.0.unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        let (server, client) = meet(dir.path(), HOST, None).await;
        assert!(server.unwrap_err().to_string().contains("0600") && client.is_err());
        let own = rustix::process::geteuid().as_raw();
        assert!(read_key(&path, &[own]).is_err(), "a client refuses it too");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        assert!(read_key(&path, &[own]).is_ok() && read_key(&path, &[own + 1]).is_err(), "of another user");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(read_key(&link, &[own]).is_err(), "a link");
        std::fs::write(&path, [7; KEY_LEN]).unwrap();
        assert!(read_key(&path, &[own]).is_err(), "another file of 40 bytes");
    }

    #[tokio::test]
    async fn a_server_without_the_key_it_names_is_refused_and_learns_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (path, _) = own_key(dir.path()).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let impostor = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _: [u8; HELLO.len() + NONCE] = read(&mut stream).await.unwrap();
            let path = path.as_os_str().as_bytes();
            let len = (path.len() as u16).to_le_bytes();
            let node = HOST.node.0.to_le_bytes();
            let challenge = [&[GOES_ON][..], &node, &HOST.cluster.to_le_bytes(), &[1; NONCE], &len, path].concat();
            stream.write_all(&challenge).await.unwrap();
            let proof: [u8; 32] = read(&mut stream).await.unwrap();
            // The client's own proof is not the server's.
            stream.write_all(&[&[GOES_ON][..], &proof].concat()).await.unwrap();
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.ok();
            rest
        };
        let client = async {
            let mut stream = TcpStream::connect(address).await.unwrap();
            prove(&mut stream, &Wanted { host: Some(HOST), store: PathBuf::new() }).await
        };
        let (rest, client) = tokio::join!(impostor, client);
        assert!(client.unwrap_err().to_string().contains("does not have the key") && rest.is_empty());
    }

    #[tokio::test]
    async fn any_bytes_instead_of_a_proof_end_the_connection() {
        let dir = tempfile::tempdir().unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let hello = [&HELLO[..], &[3; NONCE]].concat();
        for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 8], &hello, &[&hello[..], &[9; 32]].concat(), b""] {
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (server, _) = listener.accept().await.unwrap();
            client.write_all(bytes).await.unwrap();
            client.shutdown().await.unwrap();
            assert!(admit(server, Some((HOST, dir.path().to_path_buf()))).await.is_err(), "{bytes:?}");
        }
    }
}
