//! Owns: how processes of one user on one machine prove to each other who they are, where no certificates are used.
//!
//! ```text
//! client: "TAPELOC1" · nonce 32 B
//! server: 1 · node u64 · cluster u128 · nonce 32 B · length u16 · path of its key     or 2 · length u16 · why not
//! client: HMAC of both nonces, node and cluster, as the client
//! server: 1 · the same as the server                                                  or 2 · length u16 · why not
//! ```
//!
//! The key is the file [`NAME`] in the server's store: whoever can read it is the user that the store belongs to, or root.
//! The path that the server names is not trusted: a key counts only if it belongs to the client's own user (or to the one
//! whose store the client works on) and nobody else may read it.
//!
//! What must hold: nobody is heard, and nothing is sent to anybody, before both ends have proved that they have the key;
//! a proof is for one connection and one host, so that it cannot be passed on to another; what is malformed ends the
//! connection; nothing here waits without a deadline.

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

/// Name of the key in the store directory.
pub const NAME: &str = "local.key";
const KEY_MAGIC: &[u8; 8] = b"TAPEKEY1";
const KEY_LEN: usize = 40;
/// First bytes of a client.
pub const HELLO: &[u8; 8] = b"TAPELOC1";
const NONCE: usize = 32;
const GOES_ON: u8 = 1;
const REFUSED: u8 = 2;
/// Bytes of a path, and of a refusal, at most.
const PATH_MAX: usize = 4096;
const REFUSAL_MAX: usize = 1024;
/// How long a client waits for the other end.
const PATIENCE: Duration = Duration::from_secs(2);
const CLIENT: &[u8] = b"tapestore client";
const SERVER: &[u8] = b"tapestore server";

/// Who a server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// Its number.
    pub node: NodeId,
    /// Its cluster.
    pub cluster: u128,
}

/// What is known of the host that is called.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Who it is to be, if that is known.
    pub host: Option<Host>,
    /// The store that the caller works on: its owner's keys count too.
    pub store: PathBuf,
}

fn other(why: impl Into<String>) -> Error {
    Error::new(ErrorKind::PermissionDenied, why.into())
}

/// The key in the file `path`, which is to belong to one of `owners` and to be readable by nobody else.
fn read_key(path: &Path, owners: &[u32]) -> Result<hmac::Key, Error> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let file = std::fs::File::options().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    let found = file.metadata()?;
    let is_closed = found.is_file() && found.mode() & 0o077 == 0 && owners.contains(&found.uid());
    if !is_closed || found.len() != KEY_LEN as u64 {
        return Err(other("it is to be a file of this user's, with mode 0600, as tape-replication makes it"));
    }
    let mut bytes = Vec::with_capacity(KEY_LEN);
    file.take(KEY_LEN as u64).read_to_end(&mut bytes)?;
    let secret = bytes.strip_prefix(KEY_MAGIC).filter(|s| s.len() == KEY_LEN - KEY_MAGIC.len());
    let secret = secret.ok_or_else(|| other("it is no key of tape-replication's; remove it, and another one is made"))?;
    Ok(hmac::Key::new(hmac::HMAC_SHA256, secret))
}

/// The key of `store`, made if there is none, and where it is.
fn own_key(store: &Path) -> Result<(PathBuf, hmac::Key), Error> {
    let path = store.canonicalize()?.join(NAME);
    let named = |e: Error| Error::new(e.kind(), format!("{}: {e}", path.display()));
    if !path.try_exists().map_err(named)? {
        let part = path.with_extension(format!("{}.part", std::process::id()));
        let mut bytes = KEY_MAGIC.to_vec();
        bytes.extend(nonce()?);
        let mut file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(&part)?;
        let made = file.write_all(&bytes).and_then(|()| match std::fs::hard_link(&part, &path) {
            // Another process has made one meanwhile.
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

/// What is proved: that this end, `role`, has the key, on the connection of these nonces, to or as this host.
fn said(role: &[u8], nonces: [&[u8; NONCE]; 2], host: Host) -> Vec<u8> {
    let [client, server] = nonces;
    [role, client, server, &host.node.0.to_le_bytes(), &host.cluster.to_le_bytes()].concat()
}

async fn read<const N: usize>(stream: &mut TcpStream) -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// Bytes with their length before them.
async fn read_some(stream: &mut TcpStream, most: usize) -> Result<Vec<u8>, Error> {
    let len = usize::from(u16::from_le_bytes(read(stream).await?));
    if len > most {
        return Err(Error::new(ErrorKind::InvalidData, format!("{len} bytes, and {most} at most")));
    }
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// That the other end is refused, and why.
pub async fn refuse(stream: &mut TcpStream, why: &str) -> Result<(), Error> {
    let text = why.as_bytes().get(..REFUSAL_MAX).unwrap_or(why.as_bytes());
    let mut bytes = vec![REFUSED];
    bytes.extend((text.len() as u16).to_le_bytes());
    bytes.extend(text);
    stream.write_all(&bytes).await
}

/// The server's end, of the host that `host` says is here now with its store. Deadlines are the caller's.
///
/// # Errors
/// Why the other end is not heard.
pub async fn admit(mut stream: TcpStream, host: Option<(Host, PathBuf)>) -> Result<TcpStream, Error> {
    if read::<{ HELLO.len() }>(&mut stream).await? != *HELLO {
        return Err(other("it is no process of tapestore's, or of another release"));
    }
    let client: [u8; NONCE] = read(&mut stream).await?;
    let Some((host, store)) = host else {
        let why = "the storage process of that host is not there";
        refuse(&mut stream, why).await?;
        return Err(other(why));
    };
    let (path, key) = match own_key(&store) {
        Ok(own) => own,
        Err(error) => {
            refuse(&mut stream, "that host cannot read its key, and says why in its log").await?;
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
    if hmac::verify(&key, &said(CLIENT, [&client, &server], host), &proof).is_err() {
        refuse(&mut stream, "the key is another one").await?;
        return Err(other("it does not have this store's key"));
    }
    let mut answer = vec![GOES_ON];
    answer.extend(hmac::sign(&key, &said(SERVER, [&client, &server], host)).as_ref());
    stream.write_all(&answer).await?;
    Ok(stream)
}

/// Whether the server goes on.
async fn goes_on(stream: &mut TcpStream) -> Result<(), Error> {
    match read::<1>(stream).await? {
        [GOES_ON] => Ok(()),
        [REFUSED] => Err(other(String::from_utf8_lossy(&read_some(stream, REFUSAL_MAX).await?).into_owned())),
        _ => Err(other("it is no host of tapestore's, or of another release")),
    }
}

/// The client's end, of a connection to the host that is `wanted`.
async fn prove(stream: &mut TcpStream, wanted: &Wanted) -> Result<(), Error> {
    let client = nonce()?;
    stream.write_all(&[&HELLO[..], &client].concat()).await?;
    goes_on(stream).await?;
    let node = NodeId(u64::from_le_bytes(read(stream).await?));
    let host = Host { node, cluster: u128::from_le_bytes(read(stream).await?) };
    let server: [u8; NONCE] = read(stream).await?;
    let path = PathBuf::from(std::ffi::OsString::from_vec(read_some(stream, PATH_MAX).await?));
    if let Some(expected) = wanted.host.filter(|h| *h != host) {
        let (node, cluster) = (expected.node, expected.cluster);
        return Err(other(format!("node {node} of {cluster:032x} is wanted there, and it is node {}", host.node)));
    }
    let mut owners = vec![rustix::process::geteuid().as_raw()];
    owners.extend(wanted.store.metadata().ok().map(|m| m.uid()));
    let key = read_key(&path, &owners).map_err(|e| {
        other(format!(
            "without certificates only processes of one user on one machine talk to each other, and the key of that host, {}, \
             does not show that it is of this one: {e}. Give both --tls-cert, --tls-key and --tls-ca",
            path.display()
        ))
    })?;
    stream.write_all(hmac::sign(&key, &said(CLIENT, [&client, &server], host)).as_ref()).await?;
    goes_on(stream).await?;
    let proof: [u8; 32] = read(stream).await?;
    let proved = hmac::verify(&key, &said(SERVER, [&client, &server], host), &proof);
    proved.map_err(|_| other("it does not have the key that it names"))
}

/// Connects `endpoint` to the host that listens at `address`, on this machine, and is `wanted`.
///
/// # Errors
/// Why not; see [`super::tls::why`].
pub async fn connect(endpoint: Endpoint, address: String, wanted: Wanted) -> Result<Channel, tonic::transport::Error> {
    let connector = tower::service_fn(move |_| {
        let (address, wanted) = (address.clone(), wanted.clone());
        async move {
            let dialled = async {
                let mut stream = TcpStream::connect(&address).await?;
                stream.set_nodelay(true)?;
                prove(&mut stream, &wanted).await.map(|()| hyper_util::rt::TokioIo::new(stream))
            };
            let late = |_| Error::new(ErrorKind::TimedOut, "it does not answer");
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

    /// What both ends have of a connection to the host of the store `store`, of a client that wants `wanted`.
    async fn meet(store: &Path, host: Host, wanted: Option<Host>) -> (Result<TcpStream, Error>, Result<(), Error>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let wanted = Wanted { host: wanted, store: PathBuf::new() };
        let proof = async {
            let proved = prove(&mut client, &wanted).await;
            // Whoever gives up hangs up.
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
        assert!(server.is_ok() && client.is_ok(), "whichever it is");
        let mode = dir.path().join(NAME).metadata().unwrap().mode() & 0o777;
        assert_eq!(mode, 0o600);
        // What node 3 can prove is not passed on for node 2's.
        let other = Host { node: NodeId(3), ..HOST };
        let (server, client) = meet(dir.path(), other, Some(HOST)).await;
        assert!(server.is_err() && client.unwrap_err().to_string().contains("it is node 3"));
    }

    #[tokio::test]
    async fn a_key_that_others_may_read_or_that_is_none_counts_for_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        meet(dir.path(), HOST, None).await.0.unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        let (server, client) = meet(dir.path(), HOST, None).await;
        assert!(server.unwrap_err().to_string().contains("0600") && client.is_err());
        let own = rustix::process::geteuid().as_raw();
        assert!(read_key(&path, &[own]).is_err(), "nor for a client that is told of it");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        assert!(read_key(&path, &[own]).is_ok() && read_key(&path, &[own + 1]).is_err(), "another user's");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(read_key(&link, &[own]).is_err(), "a link");
        std::fs::write(&path, [7; KEY_LEN]).unwrap();
        assert!(read_key(&path, &[own]).is_err(), "another file of 40 bytes");
    }

    #[tokio::test]
    async fn who_names_a_key_that_it_does_not_have_learns_nothing_and_is_not_believed() {
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
            // The client's own proof is none of the server's.
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
