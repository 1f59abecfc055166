//! `tape top` on a real terminal: what it shows is what is there, keys do what the help says, and the terminal is as before at its end.
//! The terminal is that of util-linux's `script`; where that is not installed, these tests say so and do nothing.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};

use tapestore::lsn::Durability;

use crate::fixture::{Store, eventually};

fn has_terminal() -> bool {
    let is_there = Command::new("script").arg("--version").output().is_ok();
    if !is_there {
        println!("skipped: the program script (util-linux) is not installed");
    }
    is_there
}

/// A screen on which `tape top` runs.
struct Top {
    child: Child,
    keys: ChildStdin,
    screen: Arc<Mutex<vt100::Parser>>,
    dir: tempfile::TempDir,
}

impl Top {
    /// Starts it on a terminal of `lines` by `columns`.
    fn start(store: &Store, (lines, columns): (u16, u16), arguments: &str) -> Top {
        let dir = tempfile::tempdir().unwrap();
        let (program, path, place) = (env!("CARGO_BIN_EXE_tape"), store.path.display(), dir.path().display());
        let line = format!(
            "stty rows {lines} cols {columns}; stty -g > {place}/before; {program} top --store {path} --every 200ms {arguments}; \
             echo ended=$?; stty -g > {place}/after"
        );
        let mut command = Command::new("script");
        command.args(["--quiet", "--flush", "--command", &line, "/dev/null"]).env("TERM", "xterm-256color");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (keys, mut shown) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let screen = Arc::new(Mutex::new(vt100::Parser::new(lines.try_into().unwrap(), columns.try_into().unwrap(), 0)));
        let to = screen.clone();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(len @ 1..) = shown.read(&mut bytes) {
                to.lock().unwrap().process(&bytes[..len]);
            }
        });
        Top { child, keys, screen, dir }
    }

    fn text(&self) -> String {
        self.screen.lock().unwrap().screen().contents()
    }

    /// Waits until the screen has `wanted`.
    fn until(&self, wanted: &str) -> String {
        let mut last = String::new();
        eventually(&format!("{wanted} on the screen"), || {
            last = self.text();
            last.contains(wanted).then(|| last.clone())
        })
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
        self.keys.flush().unwrap();
    }

    /// Waits for the end; the terminal must be as before, and the program's own screen gone.
    fn ended(mut self) -> String {
        let text = self.until("ended=");
        assert!(!self.screen.lock().unwrap().screen().alternate_screen(), "{text}");
        assert!(!self.screen.lock().unwrap().screen().hide_cursor(), "{text}");
        drop(self.keys);
        self.child.wait().unwrap();
        let read = |name: &str| std::fs::read_to_string(self.dir.path().join(name)).unwrap();
        assert_eq!(read("before"), read("after"), "the terminal is not as before");
        text
    }
}

#[test]
fn the_screen_has_the_numbers_of_the_store_and_keys_choose_order_and_filter() {
    if !has_terminal() {
        return;
    }
    let store = Store::serve();
    store.tape_ok(&["publish", "--sim", "--records", "20000", "--instruments", "9"]);
    let publisher = store.numbered_publisher(77, Durability::Os);
    let mut top = Top::start(&store, (24, 80), "");
    let text = top.until("1 publishers");
    assert!(top.screen.lock().unwrap().screen().alternate_screen(), "{text}");
    top.until("+ - interval");
    let text = top.until("serving, healthy");
    assert!(text.contains("20,000 appended"), "{text}");
    assert_eq!(text.lines().count(), 24, "{text}");
    top.until("77");
    // While records come, the instruments are those of the records.
    top.press("2");
    top.until("instrument");
    store.tape_ok(&["publish", "--sim", "--records", "5000", "--instruments", "9"]);
    top.until("SIM:0000");
    top.press("3");
    top.until("tape-storage");
    top.press("5");
    top.until("trade");
    top.press("/");
    top.press("quot\r");
    let text = eventually("a filtered table", || {
        Some(top.text()).filter(|text| text.contains("filter: quot ") && text.contains("quote") && !text.contains("trade  "))
    });
    assert!(text.contains("quote"), "{text}");
    top.press("?");
    top.until("since the start of storage");
    top.press("x");
    top.press("p");
    top.until("PAUSED");
    top.press("q");
    assert!(top.ended().contains("ended=0"));
    drop(publisher);
}

#[test]
fn a_signal_ends_it_with_the_terminal_as_before_and_a_wide_screen_has_several_tables() {
    if !has_terminal() {
        return;
    }
    let mut store = Store::serve();
    store.tape_ok(&["publish", "--sim", "--records", "2000"]);
    let top = Top::start(&store, (50, 160), "--table kinds");
    // The last line is drawn last.
    top.until("+ - interval");
    let text = top.text();
    for title in [" kinds ", " publishers ", " instruments ", " processes "] {
        assert!(text.contains(title), "{title}: {text}");
    }
    // Storage ends while it is watched: that is what it shows then.
    assert!(store.terminate().success());
    top.until("PROBLEM");
    top.until("tape-storage --store");
    // The signal goes to the program, not to the terminal's own.
    let path = store.path.display().to_string();
    let is_it = |pid: &u32| {
        std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            line.contains(" top ") && line.contains(&path) && !line.starts_with("sh ") && !line.contains("stty")
        })
    };
    let processes = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    let pid = processes.into_iter().find(is_it).unwrap();
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(top.ended().contains("ended=0"));
}

#[test]
fn without_a_terminal_it_says_what_to_use_and_once_prints_one_screen() {
    let store = Store::serve();
    store.tape_ok(&["publish", "--sim", "--records", "3000"]);
    let refused = store.tape(&["top"]);
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(2) && error.contains("tape top --once"), "{error}");
    let text = store.tape_ok(&["top", "--once", "--every", "100ms", "--size", "100x30", "--table", "kinds"]);
    assert_eq!(text.lines().count(), 30, "{text}");
    assert!(text.contains("3,000 appended") && text.contains("trade"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
}
