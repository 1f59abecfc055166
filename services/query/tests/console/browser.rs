//! The page in a headless Chromium: an answer comes, markup stays text, and the keyboard is enough.
//!
//! The browser is driven by its protocol over two pipes: messages of JSON, each with a zero at its end.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};

use super::{MARKUP, open};

/// A browser with one page.
struct Browser {
    child: Child,
    requests: File,
    messages: Receiver<Json>,
    session: Option<String>,
    number: u64,
    /// Errors of the page, and what its content policy has forbidden.
    said: Vec<Json>,
    _dir: tempfile::TempDir,
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It may have ended.
        let _is_killed = self.child.kill().is_ok();
        let _is_reaped = self.child.wait().is_ok();
    }
}

fn program() -> Option<PathBuf> {
    let found = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].map(PathBuf::from);
    found.into_iter().find(|path| path.exists())
}

impl Browser {
    fn start(program: &Path) -> Browser {
        let dir = tempfile::tempdir().unwrap();
        let (requests, answers) = (dir.path().join("requests"), dir.path().join("answers"));
        assert!(Command::new("mkfifo").args([&requests, &answers]).status().unwrap().success());
        // The browser reads its descriptor 3 and writes 4.
        let child = Command::new("sh")
            .arg("-c")
            .arg("exec \"$0\" \"$@\" 3<requests 4>answers")
            .arg(program)
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"])
            .args(["--disable-quic", "--disable-dev-shm-usage", "--remote-debugging-pipe"])
            .arg(format!("--user-data-dir={}", dir.path().join("profile").display()))
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let requests = File::options().write(true).open(requests).unwrap();
        let answers = BufReader::new(File::open(answers).unwrap());
        let (sender, messages) = sync_channel(10_000);
        std::thread::spawn(move || {
            let parsed = answers.split(0).map_while(Result::ok).filter_map(|text| serde_json::from_slice(&text).ok());
            for message in parsed {
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        let mut browser = Browser { child, requests, messages, session: None, number: 0, said: Vec::new(), _dir: dir };
        let target = browser.call("Target.createTarget", &json!({ "url": "about:blank" }));
        let attached = browser.call("Target.attachToTarget", &json!({ "targetId": target["targetId"], "flatten": true }));
        browser.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page.enable", "Runtime.enable", "Log.enable"] {
            browser.call(domain, &json!({}));
        }
        browser
    }

    fn call(&mut self, method: &str, parameters: &Json) -> Json {
        self.number += 1;
        let mut message = json!({ "id": self.number, "method": method, "params": parameters });
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        self.requests.write_all(format!("{message}\0").as_bytes()).unwrap();
        loop {
            let answer = self.messages.recv_timeout(Duration::from_secs(60)).unwrap();
            if answer["id"] == self.number {
                assert!(answer["error"].is_null(), "{method}: {answer}");
                return answer["result"].clone();
            }
            // A refused statement is an entry of the network.
            let entry = &answer["params"]["entry"];
            let is_error = entry["level"] == "error" && entry["source"] != "network";
            if is_error || answer["method"] == "Runtime.exceptionThrown" {
                self.said.push(answer);
            }
        }
    }

    /// The value of an expression in the page.
    fn value(&mut self, expression: &str) -> Json {
        let parameters = json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
        let result = self.call("Runtime.evaluate", &parameters);
        assert!(result["exceptionDetails"].is_null(), "{expression}: {result}");
        result["result"]["value"].clone()
    }

    /// Waits until an expression is true.
    fn wait(&mut self, expression: &str) {
        let began = Instant::now();
        while self.value(expression) != true {
            assert!(began.elapsed() < Duration::from_secs(60), "{expression}: {}", self.value("document.body.innerText"));
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn key(&mut self, key: &str, code: u32, modifiers: u32) {
        let text = if key == "Enter" { "\r" } else { "" };
        for (of, text) in [("keyDown", text), ("keyUp", "")] {
            let mut event = json!({ "type": of, "key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": modifiers });
            if !text.is_empty() && modifiers == 0 {
                event["text"] = json!(text);
            }
            self.call("Input.dispatchKeyEvent", &event);
        }
    }

    /// Runs a statement by the keyboard.
    fn ask(&mut self, sql: &str) {
        self.value("document.getElementById('sql').focus(), document.getElementById('sql').select(), true");
        self.write(sql);
        self.key("Enter", 13, 2);
    }

    fn write(&mut self, text: &str) {
        self.call("Input.insertText", &json!({ "text": text }));
    }
}

/// Completion: a word, then an instrument within quotes.
fn completes(browser: &mut Browser) {
    browser.value("document.getElementById('sql').focus(), document.getElementById('sql').select(), true");
    browser.write("select count(*) as n, min(symbol) as s from trad");
    let first = "document.querySelector('#offers li span')?.textContent";
    browser.wait(&format!("!document.getElementById('offers').hidden && {first} === 'trade'"));
    browser.key("Tab", 9, 0);
    browser.wait("document.getElementById('sql').value.endsWith('from trade') && document.activeElement.id === 'sql'");
    browser.write(" where symbol = 'XNAS:M");
    browser.wait(&format!("{first} === 'XNAS:MSFT'"));
    browser.key("Escape", 27, 0);
    browser.wait("document.getElementById('offers').hidden");
    browser.write("S");
    browser.wait("!document.getElementById('offers').hidden");
    browser.key("ArrowDown", 40, 0);
    browser.key("Enter", 13, 0);
    browser.wait("document.getElementById('sql').value.endsWith(\"= 'XNAS:MSFT'\")");
    browser.key("Enter", 13, 2);
    browser.wait("document.getElementById('outcome').textContent.startsWith('1 row')");
    assert_eq!(browser.value("document.querySelector('.grid .row').innerText.split(/\\s+/).join(' ')"), "200 XNAS:MSFT");
}

/// Markup in a text, in the name of a column and in an error is text.
fn keeps_markup_as_text(browser: &mut Browser) {
    let name = MARKUP.replace('"', "\"\"");
    browser.ask(&format!("select raw_symbol, 1 as \"{name}\" from definition"));
    browser.wait("document.querySelector('.grid .head')?.textContent.includes('raw_symbol<img')");
    browser.wait("document.querySelectorAll('.grid .row').length === 1");
    let cell = "document.querySelector('.grid .row div')";
    assert_eq!(browser.value(&format!("{cell}.textContent")), MARKUP);
    assert_eq!(browser.value(&format!("{cell}.children.length")), 0);
    browser.ask(&format!("select \"{name}\" from trade"));
    browser.wait("!document.getElementById('error').hidden && document.getElementById('error').textContent.includes('<img')");
    assert_eq!(browser.value("document.querySelectorAll('img').length"), 0);
    assert_eq!(browser.value("document.title"), "tapestore console");
}

/// Many rows are few elements; lines and candles are drawn.
fn draws(browser: &mut Browser) {
    browser.ask("select symbol, time, price from trade order by time");
    browser.wait("document.getElementById('outcome').textContent.startsWith('600 rows')");
    assert!(browser.value("document.querySelectorAll('.grid .row').length").as_u64().unwrap() < 120);
    browser.value("document.getElementById('tab-grid').focus(), true");
    browser.key("ArrowRight", 39, 0);
    browser.wait("document.activeElement.id === 'tab-chart' && !document.getElementById('panel-chart').hidden");
    let ink = "(() => { const c = document.querySelector('#chart canvas'); if (!c.width) return 0; \
               return c.getContext('2d').getImageData(0, 0, c.width, c.height).data.filter((v, i) => i % 4 === 3 && v > 0).length; })()";
    browser.wait(&format!("{ink} > 1000"));
    browser.ask(
        "select time, first(price) as open, max(price) as high, min(price) as low, last(price) as close from trade sample by 1m",
    );
    browser.wait("document.querySelector('#chart-choice select')?.value === 'candles'");
    browser.wait(&format!("{ink} > 1000"));
}

#[test]
fn the_page_shows_answers_as_text_and_the_keyboard_is_enough() {
    let Some(program) = program() else {
        println!("skipped: there is no Chromium in /usr/bin");
        return;
    };
    let world = open();
    let mut browser = Browser::start(&program);
    browser.call("Page.navigate", &json!({ "url": format!("http://{}/", world.address) }));
    browser.wait("document.readyState === 'complete' && document.querySelectorAll('#tables > li').length > 10");
    browser.wait("document.querySelectorAll('#health div').length > 5 && document.querySelector('.state.good') !== null");
    browser.wait("document.querySelectorAll('#symbols > li').length === 3");
    completes(&mut browser);
    keeps_markup_as_text(&mut browser);
    draws(&mut browser);

    // A list is one stop of the Tab key.
    browser.value("document.querySelector('#symbols button').focus(), true");
    browser.key("ArrowDown", 40, 0);
    browser.wait("document.activeElement.textContent === 'XNAS:AAPL'");

    // A narrow window does not scroll sideways.
    let narrow = json!({ "width": 400, "height": 900, "deviceScaleFactor": 1, "mobile": false });
    browser.call("Emulation.setDeviceMetricsOverride", &narrow);
    browser.wait("innerWidth === 400 && document.documentElement.scrollWidth <= 400");

    // The live panel gets a record that is published now.
    browser.value("document.querySelectorAll('#symbols button.name')[1].click(), true");
    browser.wait("document.getElementById('live-state').textContent.startsWith('live')");
    world.publish(4_321_500_000_000);
    browser.wait("document.getElementById('live-trade').textContent.startsWith('4321.5')");
    assert!(browser.said.is_empty(), "{:?}", browser.said);
}
