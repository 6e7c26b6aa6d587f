//! Requests to a daemon of this machine, and what their answers must be.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::ops::Deref;
use std::time::Duration;

use rapiddiskd::client;
use rapiddiskd::http::Listen;
use serde_json::Value;

use super::kernel::PAUSE;

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
    pub text: String,
    reply: client::Reply,
}

impl Client {
    fn address(self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Whether anybody listens there.
    pub fn takes_connections(&self) -> bool {
        TcpStream::connect(self.address()).is_ok()
    }

    /// The answer, or why there is none.
    pub fn try_request(&self, method: &str, path: &str) -> io::Result<Reply> {
        let reply = client::Client::new(&Listen::Tcp(self.address()), PATIENCE).call(method, path)?;
        let text = String::from_utf8_lossy(&reply.body).into_owned();
        Ok(Reply { request: format!("{method} {path}"), text, reply })
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
            std::thread::sleep(PAUSE);
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

    /// What stands beside the counters of a cache.
    pub fn beside_stats(&self, cache: &str) -> Value {
        self.read(&format!("showRapidDiskCacheStats/{cache}"))["statistics"][0].clone()
    }

    /// The counters of a cache.
    pub fn stats(&self, cache: &str) -> Value {
        self.read(&format!("showRapidDiskCacheStats/{cache}"))["statistics"][0]["cache_stats"][0].clone()
    }
}

/// Its status and its header fields.
impl Deref for Reply {
    type Target = client::Reply;

    fn deref(&self) -> &client::Reply {
        &self.reply
    }
}

impl Reply {
    /// The body, which must be one JSON object with any status.
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
