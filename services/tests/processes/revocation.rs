//! Certificates that the authority has revoked: on hosts, of operators, while connected and before.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rcgen::{CertificateRevocationListParams, Issuer, KeyIdMethod, KeyPair, RevokedCertParams, SerialNumber};
use tape_services::replication::certificates::Certificates;
use tape_services::replication::peer::VERSION;
use tape_services::replication::proto::HelloRequest;
use tape_services::replication::proto::peer_client::PeerClient;
use tape_services::replication::tls::{Files, why};
use tapestore::disk::{self, RealDisk};
use tapestore::lsn::{Durability, NodeId};
use tapestore::time::{Clock, HostClock};
use tapestore_engine::cluster_admin::store_id;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use tonic::transport::{Channel, Endpoint};

use crate::cluster::{Hosts, certify, ok, openssl, publish};
use crate::fixture::{PATIENCE, eventually};

/// A command with the certificate `name` in `certs` and the revocation list `list`; its errors as text.
fn asked(hosts: &Hosts, from: usize, to: usize, name: &str, list: Option<&Path>) -> Result<String, String> {
    let certs = hosts.certs();
    let file = |file: String| certs.join(file).display().to_string();
    let mut arguments = vec!["cluster".to_owned(), "status".to_owned(), "--at".to_owned(), hosts.addresses[to - 1].clone()];
    arguments.extend(["--tls-cert".to_owned(), file(format!("{name}.pem")), "--tls-key".to_owned(), file(format!("{name}.key"))]);
    arguments.extend(["--tls-ca".to_owned(), file("ca.pem".to_owned())]);
    arguments.extend(list.map(|list| ["--tls-crl".to_owned(), list.display().to_string()]).into_iter().flatten());
    let output = hosts.tape(from, &arguments.iter().map(String::as_str).collect::<Vec<_>>());
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// Revokes the certificate `name` in `certs`.
fn revoke(hosts: &Hosts, name: &str) -> String {
    ok(&hosts.tape(1, &["cluster", "certs", "--revoke", name, "--dir", hosts.certs().to_str().unwrap()]))
}

/// Replaces the list of host `n` by the newest.
fn publish_list(hosts: &Hosts, n: usize) {
    let list = std::fs::read(hosts.certs().join("crl.pem")).unwrap();
    disk::publish(&RealDisk, &hosts.list(n), &list).unwrap();
}

/// Connects to host `to` with the certificate of host `from`, without a revocation list: as somebody who has stolen it does.
async fn connect(hosts: &Hosts, from: usize, to: usize) -> Result<Channel, String> {
    let file = |file: String| hosts.certs().join(file);
    let (cert, key) = (file(format!("node-{from}.pem")), file(format!("node-{from}.key")));
    let certificates = Certificates::new(Files { cert, key, ca: file("ca.pem".to_owned()), crl: None });
    let certificates = certificates.map_err(|e| e.to_string())?;
    let dial = certificates.dial(NodeId(to as u64), store_id("test")).map_err(|e| e.to_string())?;
    let endpoint = Endpoint::from_shared(format!("http://{}", hosts.addresses[to - 1])).unwrap();
    dial.connect(endpoint).await.map_err(|e| why(&e))
}

/// The answer to a greeting of host `from` on `channel`, which the other host gives only to that host's certificate.
async fn greet(channel: &Channel, from: usize, to: usize) -> Result<(), String> {
    // Of another generation: it changes nothing.
    let hello = HelloRequest {
        cluster: store_id("test").to_le_bytes().to_vec().into(),
        node: from as u64,
        to: to as u64,
        incarnation: 1,
        generation: 7,
        version_min: VERSION,
        version_max: VERSION,
        segment_size: 4 << 20,
        is_fresh: false,
        is_lossy: false,
        initial_members: 0,
        address: String::new(),
    };
    let refused = PeerClient::new(channel.clone()).hello(hello).await.err().unwrap();
    if refused.message().contains("generation") { Ok(()) } else { Err(refused.message().to_owned()) }
}

#[test]
fn a_host_that_is_revoked_while_connected_is_refused_in_both_directions_and_the_others_go_on() {
    let mut hosts = Hosts::serving(true, true);
    let leader = hosts.leader();
    let (revoked, other) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    let mut publisher = hosts.publisher(leader, 1);
    publish(&mut publisher, 0..500);
    publisher.flush(Durability::Quorum, PATIENCE).unwrap();
    let appended = |n: usize| hosts.status(n).map(|status| status["appended"].as_u64().unwrap());
    let all = appended(leader).unwrap();
    eventually("all records on all hosts", || (appended(revoked) == Some(all) && appended(other) == Some(all)).then_some(()));
    ok_text(asked(&hosts, leader, revoked, "operator", Some(&hosts.list(leader))));
    let is_active = |n: usize| {
        let status = hosts.status(leader).unwrap();
        let member = status["members"].as_array().unwrap().iter().find(|m| m["node"] == n).unwrap();
        member["active"] == true
    };
    eventually("all hosts active", || (is_active(revoked) && is_active(other)).then_some(()));
    // The revoked host keeps its list: whoever has stolen its key does, too.
    assert!(revoke(&hosts, &format!("node-{revoked}")).contains(&format!("revokes node-{revoked}.test")));
    publish_list(&hosts, leader);
    publish_list(&hosts, other);
    // It no longer sends to the leader, and the leader no longer to it.
    eventually("the end of the revoked host's connection", || (!is_active(revoked)).then_some(()));
    let before = appended(revoked);
    publish(&mut publisher, 500..1_000);
    publisher.flush(Durability::Quorum, PATIENCE).unwrap();
    // It dials once a second at least.
    std::thread::sleep(Duration::from_secs(3));
    assert!(is_active(other) && !is_active(revoked));
    assert_eq!(appended(revoked), before, "a revoked host gets no record");
    let refused = asked(&hosts, leader, revoked, "operator", Some(&hosts.list(leader))).unwrap_err();
    assert!(refused.contains("Revoked"), "as a server: {refused}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let refused = runtime.block_on(connect(&hosts, revoked, leader)).unwrap_err();
    assert!(refused.contains("this certificate is revoked"), "as a client: {refused}");
    ok_text(asked(&hosts, leader, other, "operator", Some(&hosts.list(leader))));
    // With a new certificate it takes part again, without a restart of any process.
    for end in ["pem", "key"] {
        std::fs::remove_file(hosts.certs().join(format!("node-{revoked}.{end}"))).unwrap();
    }
    let node = revoked.to_string();
    let certs =
        ["cluster", "certs", "--cluster", "test", "--nodes", &node, "--dir", hosts.certs().to_str().unwrap()].map(str::to_owned);
    ok(&hosts.tape(1, &certs.each_ref().map(String::as_str)));
    let all = appended(leader);
    eventually("the records on the host with the new certificate", || (appended(revoked) == all).then_some(()));
    drop(publisher);
    assert!(hosts.stop().iter().all(|ids| ids.len() == 1_000));
}

fn ok_text(asked: Result<String, String>) -> String {
    asked.unwrap_or_else(|why| panic!("{why}"))
}

#[test]
fn an_open_connection_ends_when_its_certificate_is_revoked_and_others_stay_open() {
    let hosts = Hosts::serving(true, true);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    // With the certificates of hosts 2 and 3 at host 1.
    let stolen = runtime.block_on(connect(&hosts, 2, 1)).unwrap();
    let kept = runtime.block_on(connect(&hosts, 3, 1)).unwrap();
    runtime.block_on(greet(&stolen, 2, 1)).unwrap();
    runtime.block_on(greet(&kept, 3, 1)).unwrap();
    revoke(&hosts, "node-2");
    publish_list(&hosts, 1);
    // The channel would connect again if the host accepted it.
    let why = eventually("the end of the connection", || runtime.block_on(greet(&stolen, 2, 1)).err());
    assert!(!why.contains("ticket"), "{why}");
    let why = eventually("the reason", || runtime.block_on(greet(&stolen, 2, 1)).err().filter(|why| why.contains("revoked")));
    assert!(why.contains("node-2.pem"), "{why}");
    // The other one was never interrupted: a channel that has to connect again fails first.
    runtime.block_on(greet(&kept, 3, 1)).unwrap();
}

#[test]
fn an_operator_with_a_revoked_certificate_is_refused_with_the_reason() {
    let hosts = Hosts::serving(true, true);
    ok_text(asked(&hosts, 1, 2, "operator", None));
    revoke(&hosts, "operator");
    ok_text(asked(&hosts, 1, 2, "operator", None));
    (1..=3).for_each(|n| publish_list(&hosts, n));
    // The host uses a changed list from the next connection on.
    let refused = asked(&hosts, 1, 2, "operator", None).unwrap_err();
    assert!(refused.contains("operator.pem: this certificate is revoked") && refused.contains(&hosts.addresses[1]), "{refused}");
    // With a list of its own the command does not even connect.
    let refused = asked(&hosts, 1, 2, "operator", Some(&hosts.list(1))).unwrap_err();
    assert!(refused.contains("operator.pem: the certificate is revoked by") && refused.contains("crl-1.pem"), "{refused}");
}

#[test]
fn without_a_list_no_certificate_is_revoked() {
    let hosts = Hosts::serving(true, false);
    revoke(&hosts, "operator");
    ok_text(asked(&hosts, 1, 2, "operator", None));
    ok_text(asked(&hosts, 1, 2, "operator", Some(&empty_list(&hosts))));
}

/// A list of the authority in which nothing is.
fn empty_list(hosts: &Hosts) -> PathBuf {
    let path = hosts.certs().join("empty.pem");
    std::fs::write(&path, list(&hosts.certs(), &[], 30)).unwrap();
    path
}

/// A list of the trial authority in `certs` that revokes `names`, and is to be renewed `days` days from now.
fn list(certs: &Path, names: &[&str], days: i64) -> String {
    let read = |name: &str| std::fs::read_to_string(certs.join(name)).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&read("ca.pem"), KeyPair::from_pem(&read("ca.key")).unwrap()).unwrap();
    let now = time::OffsetDateTime::UNIX_EPOCH + Duration::from_nanos(HostClock.wall().0);
    let made = now - time::Duration::days(40);
    let serial = |name: &&str| {
        let der = CertificateDer::from_pem_file(certs.join(format!("{name}.pem"))).unwrap();
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
        SerialNumber::from(parsed.tbs_certificate.serial.to_bytes_be())
    };
    let revoked = names.iter().map(|name| RevokedCertParams {
        serial_number: serial(name),
        revocation_time: made,
        reason_code: None,
        invalidity_date: None,
    });
    let list = CertificateRevocationListParams {
        this_update: made,
        next_update: now + time::Duration::days(days),
        crl_number: SerialNumber::from(7u64),
        issuing_distribution_point: None,
        revoked_certs: revoked.collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    list.signed_by(&issuer).unwrap().pem().unwrap()
}

#[test]
fn a_list_that_cannot_be_used_changes_nothing_while_a_host_runs_and_one_past_its_next_update_counts() {
    let hosts = Hosts::serving(true, true);
    let leader = hosts.leader();
    let refused = || asked(&hosts, leader, leader, "operator", None).is_err();
    // Past its next update: who is revoked is refused, and the others are not.
    std::fs::write(hosts.list(leader), list(&hosts.certs(), &["operator"], -10)).unwrap();
    assert!(refused());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(connect(&hosts, leader % 3 + 1, leader)).unwrap();
    // Malformed, of another authority, gone: the earlier list stays in use.
    let other = hosts.dir.path().join("other");
    ok(&hosts.tape(1, &["cluster", "certs", "--cluster", "test", "--nodes", "1", "--dir", other.to_str().unwrap()]));
    for bad in ["nothing".to_owned(), list(&other, &[], 30)] {
        std::fs::write(hosts.list(leader), bad).unwrap();
        assert!(refused());
    }
    std::fs::remove_file(hosts.list(leader)).unwrap();
    assert!(refused());
    // Connections stay, and a sound list is used again.
    let mut publisher = hosts.publisher(leader, 1);
    publish(&mut publisher, 0..100);
    publisher.flush(Durability::Quorum, PATIENCE).unwrap();
    std::fs::write(hosts.list(leader), list(&hosts.certs(), &[], 30)).unwrap();
    ok_text(asked(&hosts, leader, leader, "operator", None));
}

/// The end of a replication process with the list `list`, whose authority is in `certs`.
fn started(certs: &Path, list: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tape-replication"));
    let store = certs.parent().unwrap().join("store");
    command.arg("--store").arg(store).args(["--listen", "127.0.0.1:0"]).stdin(Stdio::null()).env("RUST_LOG", "off");
    command.arg("--tls-cert").arg(certs.join("node-1.pem")).arg("--tls-key").arg(certs.join("node-1.key"));
    command.arg("--tls-ca").arg(certs.join("ca.pem")).arg("--tls-crl").arg(list);
    command.output().unwrap()
}

#[test]
fn a_malformed_list_or_one_of_another_authority_is_refused_at_the_start_with_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let (certs, other) = (dir.path().join("certs"), dir.path().join("other"));
    for dir in [&certs, &other] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tape"));
        command.args(["cluster", "certs", "--cluster", "test", "--nodes", "1", "--dir"]).arg(dir);
        ok(&command.output().unwrap());
    }
    let sound = std::fs::read_to_string(certs.join("crl.pem")).unwrap();
    let foreign = list(&other, &[], 30);
    // A changed byte of the signature.
    let (head, body) = sound.split_once("-----\n").unwrap();
    let at = body.find("\n-----END").unwrap() - 10;
    let changed = format!("{head}-----\n{}{}{}", &body[..at], if &body[at..=at] == "A" { "B" } else { "A" }, &body[at + 1..]);
    let cut = format!("{}\n-----END X509 CRL-----\n", sound.lines().take(3).collect::<Vec<_>>().join("\n"));
    let list = dir.path().join("the-list.pem");
    for (text, reason) in [
        ("nothing".to_owned(), "no revocation list in PEM form"),
        (std::fs::read_to_string(certs.join("ca.pem")).unwrap(), "no revocation list in PEM form"),
        (cut, "malformed"),
        (foreign.clone(), "which is no authority in"),
        (format!("{sound}{foreign}"), "revocation list 2 of the file is of 'CN=tapestore trial authority"),
        (changed, "not signed with the key of that authority"),
    ] {
        std::fs::write(&list, &text).unwrap();
        let output = started(&certs, &list);
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{reason}: {message}");
        assert!(message.contains("the-list.pem") && message.contains(reason), "{reason}: {message}");
    }
    std::fs::remove_file(&list).unwrap();
    let output = started(&certs, &list);
    assert!(output.status.code() == Some(66) && String::from_utf8_lossy(&output.stderr).contains("the-list.pem"));
    // A list without certificates is refused by the command line.
    let output = Command::new(env!("CARGO_BIN_EXE_tape-replication")).arg("--tls-crl").arg(&list).output().unwrap();
    assert!(output.status.code() == Some(2) && String::from_utf8_lossy(&output.stderr).contains("--tls-cert"));
}

#[test]
fn the_trial_authority_keeps_what_it_has_revoked_and_revokes_only_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let (certs, other) = (dir.path().join("certs"), dir.path().join("other"));
    let tape = |arguments: &[&str], dir: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tape"));
        command.args(["cluster", "certs"]).args(arguments).arg("--dir").arg(dir).output().unwrap()
    };
    let nodes = ["--cluster", "test", "--nodes", "1,2"];
    assert!(ok(&tape(&nodes, &certs)).contains("crl.pem: revocation list, empty"));
    ok(&tape(&nodes, &other));
    assert!(ok(&tape(&["--revoke", "node-1"], &certs)).contains("crl.pem: 1 revoked certificates in all"));
    // A certificate by its path, one that is revoked already, and creating certificates again: all stay.
    let moved = dir.path().join("moved.pem");
    std::fs::copy(certs.join("node-2.pem"), &moved).unwrap();
    std::fs::remove_file(certs.join("node-2.pem")).unwrap();
    let second = moved.display().to_string();
    let report: serde_json::Value = serde_json::from_str(&ok(&tape(&["--revoke", &second, "--json"], &certs))).unwrap();
    assert_eq!((report["revoked"].as_u64(), report["added"][0]["name"].as_str()), (Some(2), Some("node-2.test")));
    assert!(ok(&tape(&["--revoke", "node-1"], &certs)).contains("crl.pem: 2 revoked certificates in all"));
    ok(&tape(&nodes, &certs));
    let file = |name: &str| certs.join(name);
    let files = Files { cert: file("operator.pem"), key: file("operator.key"), ca: file("ca.pem"), crl: Some(file("crl.pem")) };
    let lists = files.settings().map_err(|e| e.to_string()).unwrap().lists.unwrap();
    let revoked = |cert: &Path| lists.revoke(&[CertificateDer::from_pem_file(cert).unwrap()]);
    assert!(revoked(&file("node-1.pem")) && revoked(&moved) && !revoked(&file("operator.pem")));
    // Not of this authority, the authority itself, none, and a directory without an authority.
    let theirs = other.join("node-1.pem").display().to_string();
    for (which, reason) in [(&*theirs, "is not a certificate"), ("ca", "is not a certificate"), ("node-9", "node-9")] {
        let output = tape(&["--revoke", which], &certs);
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && message.contains(reason), "{which}: {message}");
    }
    let output = tape(&["--revoke", "node-1"], dir.path());
    assert!(String::from_utf8_lossy(&output.stderr).contains("has no authority"));
}

/// A configuration of `openssl ca` for the authority `name` in `dir`.
fn authority(dir: &Path, name: &str) {
    std::fs::write(dir.join(format!("{name}.index")), "").unwrap();
    std::fs::write(dir.join(format!("{name}.number")), "01\n").unwrap();
    let text = format!(
        "[ca]\ndefault_ca=own\n[own]\ndatabase={name}.index\ncrlnumber={name}.number\ncertificate={name}.pem\n\
         private_key={name}.key\ndefault_md=sha256\ndefault_crl_days=30\n"
    );
    std::fs::write(dir.join(format!("{name}.cnf")), text).unwrap();
}

#[test]
fn lists_that_openssl_made_are_used_and_each_authority_above_a_host_needs_one() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    if !openssl(dir, &format!("req -x509 {key} -keyout ca.key -out ca.pem -days 30 -subj /CN=authority")) {
        return;
    }
    ["node-1", "node-2"].iter().for_each(|name| certify(dir, name, &format!("{name}.test")));
    authority(dir, "ca");
    assert!(openssl(dir, "ca -config ca.cnf -gencrl -out empty.pem"));
    assert!(openssl(dir, "ca -config ca.cnf -revoke node-2.pem"));
    assert!(openssl(dir, "ca -config ca.cnf -gencrl -out crl.pem"));
    let settings = |cert: &str, crl: &str| {
        let path = |name: &str| dir.join(name);
        let (key, cert) = (path(&format!("{}.key", cert.trim_end_matches(".pem"))), path(cert));
        Files { cert, key, ca: path("ca.pem"), crl: Some(path(crl)) }.settings().map_err(|e| e.to_string())
    };
    assert!(!settings("node-1.pem", "crl.pem").unwrap().is_revoked && settings("node-2.pem", "crl.pem").unwrap().is_revoked);
    assert!(!settings("node-2.pem", "empty.pem").unwrap().is_revoked);
    // The order of old and new lists in a file does not matter.
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
    std::fs::write(dir.join("both.pem"), format!("{}{}", read("empty.pem"), read("crl.pem"))).unwrap();
    let both = settings("node-2.pem", "both.pem").unwrap();
    let newest = CertificateRevocationListDer::from_pem_file(dir.join("crl.pem")).unwrap();
    assert!(both.is_revoked && both.lists.unwrap().ders()[0] == newest, "the TLS library uses the first one");
    // An authority between: its certificate stands below the host's own, and both authorities need a list.
    std::fs::write(dir.join("ext"), "basicConstraints=critical,CA:true\n").unwrap();
    assert!(openssl(dir, &format!("req {key} -keyout middle.key -out middle.csr -subj /CN=middle")));
    assert!(openssl(
        dir,
        "x509 -req -in middle.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 -extfile ext -out middle.pem"
    ));
    std::fs::write(dir.join("ext"), "subjectAltName=DNS:node-3.test\nextendedKeyUsage=serverAuth,clientAuth\n").unwrap();
    assert!(openssl(dir, &format!("req {key} -keyout node-3.key -out node-3.csr -subj /CN=node-3")));
    let by = "-CA middle.pem -CAkey middle.key -CAcreateserial -days 30 -extfile ext";
    assert!(openssl(dir, &format!("x509 -req -in node-3.csr {by} -out leaf.pem")));
    std::fs::write(dir.join("node-3.pem"), format!("{}{}", read("leaf.pem"), read("middle.pem"))).unwrap();
    let refused = settings("node-3.pem", "crl.pem").err().unwrap();
    assert!(refused.contains("crl.pem: no revocation list") && refused.contains("'CN=middle'"), "{refused}");
    authority(dir, "middle");
    assert!(openssl(dir, "ca -config middle.cnf -gencrl -out middle-crl.pem"));
    let refused = settings("node-1.pem", "middle-crl.pem").err().unwrap();
    assert!(refused.contains("of 'CN=middle', which is no authority in"), "{refused}");
    std::fs::write(dir.join("all.pem"), format!("{}{}", read("crl.pem"), read("middle-crl.pem"))).unwrap();
    assert!(!settings("node-3.pem", "all.pem").unwrap().is_revoked);
    assert!(openssl(dir, "ca -config ca.cnf -revoke middle.pem") && openssl(dir, "ca -config ca.cnf -gencrl -out crl.pem"));
    std::fs::write(dir.join("all.pem"), format!("{}{}", read("middle-crl.pem"), read("crl.pem"))).unwrap();
    assert!(settings("node-3.pem", "all.pem").unwrap().is_revoked, "an authority above it is revoked");
    // Two authorities of one name.
    assert!(openssl(dir, &format!("req -x509 {key} -keyout second.key -out second.pem -days 30 -subj /CN=authority")));
    std::fs::write(dir.join("ca.pem"), format!("{}{}", read("ca.pem"), read("second.pem"))).unwrap();
    let refused = settings("node-1.pem", "crl.pem").err().unwrap();
    assert!(refused.contains("two authorities have the name 'CN=authority'"), "{refused}");
}
