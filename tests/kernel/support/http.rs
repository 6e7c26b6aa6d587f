//! A small HTTP client: one request a connection.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// Far above what any answer takes on a slow machine.
const PATIENCE: Duration = Duration::from_secs(40);

/// Asks a daemon of this machine.
#[derive(Clone, Copy)]
pub struct Client {
    pub port: u16,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Reply {
    pub request: String,
    pub status: u16,
    /// Names in lower case.
    pub fields: Vec<(String, String)>,
    pub text: String,
}

impl Client {
    /// Whether anybody listens there.
    pub fn takes_connections(&self) -> bool {
        TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok()
    }

    /// The answer, or why there is none.
    pub fn try_request(&self, method: &str, path: &str) -> std::io::Result<Reply> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes);
        let broken = || std::io::Error::other(format!("no answer to {method} {path}: {text:?}"));
        let (head, body) = text.split_once("\r\n\r\n").ok_or_else(broken)?;
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).ok_or_else(broken)?;
        let field = |line: &str| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_ascii_lowercase(), value.trim().to_owned()))
        };
        let fields = lines.filter_map(field).collect();
        Ok(Reply { request: format!("{method} {path}"), status, fields, text: body.to_owned() })
    }

    pub fn request(&self, method: &str, path: &str) -> Reply {
        self.try_request(method, path).unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    pub fn get(&self, path: &str) -> Reply {
        self.request("GET", &format!("/v1/{path}"))
    }

    pub fn post(&self, path: &str) -> Reply {
        self.request("POST", &format!("/v1/{path}"))
    }

    /// A read that must succeed.
    pub fn read(&self, path: &str) -> Value {
        let reply = self.get(path);
        assert_eq!(reply.status, 200, "{reply:?}");
        reply.json()
    }

    /// A change that must succeed.
    pub fn change(&self, path: &str) -> Value {
        self.post(path).success()
    }

    /// A change that is asked for again while the server says that it is saturated.
    pub fn change_when_free(&self, path: &str) -> Reply {
        loop {
            let reply = self.post(path);
            if reply.status != 503 || reply.field("retry-after").is_none() {
                return reply;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Makes a RAM disk of this many MiB and gives its name.
    pub fn disk(&self, mib: u64) -> String {
        let made = self.change(&format!("createRapidDisk/{mib}"));
        made["device"].as_str().expect("the disk's name").to_owned()
    }

    /// Makes a cache and gives its name.
    pub fn cache(&self, disk: &str, source: &str, policy: &str) -> String {
        let made = self.change(&format!("createRapidDiskCache/{disk}/{source}/{policy}"));
        made["device"].as_str().expect("the cache's name").to_owned()
    }

    /// The RAM disks that are listed.
    pub fn disks(&self) -> Vec<Value> {
        self.read("listRapidDiskVolumes")["volumes"][0]["rapiddisk"].as_array().expect("disks").clone()
    }

    /// The caches that are listed.
    pub fn caches(&self) -> Vec<Value> {
        self.read("listRapidDiskVolumes")["volumes"][1]["rapiddisk_cache"].as_array().expect("caches").clone()
    }

    /// What is listed of one RAM disk.
    pub fn listed(&self, disk: &str) -> Value {
        let mut disks = self.disks().into_iter();
        disks.find(|listed| listed["device"] == disk).unwrap_or_else(|| panic!("{disk} is not listed"))
    }

    /// The counters of a cache.
    pub fn stats(&self, cache: &str) -> Value {
        self.read(&format!("showRapidDiskCacheStats/{cache}"))["statistics"][0]["cache_stats"][0].clone()
    }
}

impl Reply {
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str())
    }

    /// The body, which is always one JSON object, whatever the status.
    pub fn json(&self) -> Value {
        assert_eq!(self.field("content-type"), Some("application/json"), "{self:?}");
        let value: Value =
            serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"));
        assert!(value.is_object(), "{self:?}");
        value
    }

    /// A change's success.
    pub fn success(&self) -> Value {
        assert_eq!(self.status, 200, "{}: {self:?}", self.request);
        let body = self.json();
        assert_eq!(body["status"], "Success", "{self:?}");
        assert!(body["message"].as_str().is_some_and(|message| !message.is_empty()), "{self:?}");
        body
    }

    /// A failure with this status whose message has all of `words`.
    pub fn failure(&self, status: u16, words: &[&str]) {
        assert_eq!(self.status, status, "{}: {self:?}", self.request);
        let body = self.json();
        assert_eq!(body["status"], "Failed", "{self:?}");
        let message = body["message"].as_str().unwrap_or_else(|| panic!("no message: {self:?}"));
        for word in words {
            assert!(message.contains(word), "no {word:?} in the message of {self:?}");
        }
    }
}
