//! Owns: standard output of the prompt, which goes through a pager if it has more lines than the terminal.
//!
//! The pager is `$PAGER`, else `less -SFRX` if it is there. With an empty `$PAGER` there is none.
//!
//! What must hold: an answer that the terminal has room for is printed as without a pager. A pager that cannot be started loses
//! nothing. The prompt comes back when the pager has ended.

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::{Child, Command, Stdio};

use tape_services::grid::terminal_size;

/// Lines that a pager and the prompt need for themselves.
const OWN_LINES: usize = 2;

/// Standard output, which may go through a pager.
pub struct Paged {
    pager: Option<Command>,
    /// Characters of a line, and lines.
    size: (usize, usize),
    /// Lines that were written, and characters of the last one.
    lines: (usize, usize),
    to: To,
    direct: Box<dyn Write>,
}

enum To {
    /// Nobody yet: what was written.
    Held(Vec<u8>),
    Pager(Child),
    Direct,
}

/// The pager that the user wants.
fn wanted(pager: Option<OsString>) -> Option<Command> {
    let Some(text) = pager else {
        let mut less = Command::new("less");
        less.arg("-SFRX");
        return Some(less);
    };
    if text.is_empty() {
        return None;
    }
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(text);
    Some(shell)
}

impl Paged {
    /// Standard output; `None` if it is no terminal.
    pub fn new() -> Option<Paged> {
        let pager = wanted(std::env::var_os("PAGER"));
        Some(Paged::of(pager, terminal_size()?, Box::new(io::stdout())))
    }

    fn of(pager: Option<Command>, size: (usize, usize), direct: Box<dyn Write>) -> Paged {
        Paged { pager, size, lines: (0, 0), to: To::Held(Vec::new()), direct }
    }

    /// Counts lines as the terminal breaks them.
    fn count(&mut self, bytes: &[u8]) {
        for byte in bytes {
            // The first byte of a character counts.
            let is_character = byte & 0xc0 != 0x80;
            match *byte {
                b'\n' => self.lines = (self.lines.0 + 1, 0),
                _ if is_character && self.lines.1 >= self.size.0 => self.lines = (self.lines.0 + 1, 1),
                _ => self.lines.1 += usize::from(is_character),
            }
        }
    }

    /// Writes what is held to the pager, or past it.
    fn start(&mut self) -> io::Result<()> {
        let To::Held(held) = std::mem::replace(&mut self.to, To::Direct) else { return Ok(()) };
        let pager = self.pager.take().and_then(|mut pager| pager.stdin(Stdio::piped()).spawn().ok());
        if let Some(pager) = pager {
            self.to = To::Pager(pager);
        }
        self.pass(&held)
    }

    fn pass(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.to {
            To::Held(held) => held.extend_from_slice(bytes),
            To::Pager(pager) => {
                // The user has ended it if it is gone.
                let Some(stdin) = &mut pager.stdin else { return Err(io::ErrorKind::BrokenPipe.into()) };
                stdin.write_all(bytes)?;
            }
            To::Direct => self.direct.write_all(bytes)?,
        }
        Ok(())
    }
}

impl Write for Paged {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if matches!(self.to, To::Held(_)) {
            self.count(bytes);
        }
        self.pass(bytes)?;
        if matches!(self.to, To::Held(_)) && self.lines.0 + OWN_LINES > self.size.1 {
            self.start()?;
        }
        Ok(bytes.len())
    }

    /// What is held then is the whole answer.
    fn flush(&mut self) -> io::Result<()> {
        if let To::Held(held) = &mut self.to {
            if held.is_empty() {
                return Ok(());
            }
            let held = std::mem::take(held);
            self.to = To::Direct;
            self.pass(&held)?;
        }
        match &mut self.to {
            To::Pager(pager) => pager.stdin.as_mut().map_or(Ok(()), Write::flush),
            _ => self.direct.flush(),
        }
    }
}

impl Drop for Paged {
    fn drop(&mut self) {
        if let To::Pager(pager) = &mut self.to {
            drop(pager.stdin.take());
            // It has ended, or there is nothing that could be done.
            let _is_ended = pager.wait().is_ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;

    #[derive(Clone, Default)]
    struct Screen(Rc<RefCell<Vec<u8>>>);

    impl Write for Screen {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.borrow_mut().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What `text` becomes on a screen of 10 characters and 6 lines: through the pager, and past it.
    fn shown(pager: Option<&str>, text: &str) -> (String, String) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("paged");
        let pager = pager.map(|pager| wanted(Some(format!("{pager} > {}", file.display()).into())).unwrap());
        let screen = Screen::default();
        let mut paged = Paged::of(pager, (10, 6), Box::new(screen.clone()));
        for line in text.split_inclusive('\n') {
            paged.write_all(line.as_bytes()).unwrap();
        }
        paged.flush().unwrap();
        drop(paged);
        let direct = String::from_utf8(screen.0.borrow().clone()).unwrap();
        (std::fs::read_to_string(&file).unwrap_or_default(), direct)
    }

    #[test]
    fn an_answer_higher_than_the_terminal_goes_through_the_pager_and_others_do_not() {
        let lines = |n: usize| (0..n).map(|i| format!("{i}\n")).collect::<String>();
        assert_eq!(shown(Some("cat"), &lines(4)), (String::new(), lines(4)));
        assert_eq!(shown(Some("cat"), &lines(5)), (lines(5), String::new()));
        assert_eq!(shown(Some("cat"), &lines(500)), (lines(500), String::new()));
        // Lines that the terminal breaks count as several.
        let long = "01234567890123456789\n01234567890123456789\n0\n";
        assert_eq!(shown(Some("cat"), long), (long.to_owned(), String::new()));
    }

    #[test]
    fn without_a_pager_or_with_one_that_is_not_there_everything_is_printed() {
        let lines = (0..50).map(|i| format!("{i}\n")).collect::<String>();
        assert_eq!(shown(None, &lines), (String::new(), lines.clone()));
        assert!(wanted(Some(OsString::new())).is_none());
        let screen = Screen::default();
        let mut paged = Paged::of(Some(Command::new("/no/such/pager")), (10, 6), Box::new(screen.clone()));
        paged.write_all(lines.as_bytes()).unwrap();
        paged.flush().unwrap();
        assert_eq!(screen.0.borrow().as_slice(), lines.as_bytes());
    }

    #[test]
    fn a_pager_that_the_user_ends_is_a_closed_pipe() {
        let mut paged = Paged::of(wanted(Some("true".into())), (10, 6), Box::new(Screen::default()));
        let many = vec![b'\n'; 1 << 20];
        let ended = (0..1000).find_map(|_| paged.write_all(&many).err());
        assert_eq!(ended.unwrap().kind(), io::ErrorKind::BrokenPipe);
    }
}
