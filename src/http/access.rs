//! Who may do what: by token, by the client's address, and by the web page that a browser shows.

use super::message::{Method, Refusal, Response};
use super::parse::Fields;
use super::peer::Peer;
use super::service::Class;
use super::tokens::{Own, Role, Tokens};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;

/// The administrator's rules about access.
#[derive(Debug, Clone, Default)]
pub struct AccessRules {
    /// Only who has a token of this file may do anything, but for reading public pages. Without a
    /// file, everybody may read, and changes are allowed from this machine only.
    pub token_file: Option<PathBuf>,
    /// Everybody may read and change everything.
    pub open: bool,
    /// Names that a request's Host may have, besides this machine's own.
    pub allow_hosts: Vec<String>,
    /// Origins, such as `https://console.example`, whose pages may use the daemon.
    pub allow_origins: Vec<String>,
}

/// The rules, with the tokens read.
#[derive(Debug, Default)]
pub struct Access {
    rules: AccessRules,
    tokens: Option<Tokens>,
    own: Own,
    origins: Vec<Arc<str>>,
}

/// What was found out about a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// The name of the request's token.
    pub caller: Option<Arc<str>>,
    /// The request's origin, if it is an allowed one: the answer names it.
    pub origin: Option<Arc<str>>,
    pub decision: Decision,
}

/// What is to be done with a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// It is allowed.
    Pass,
    /// A browser asks, before it sends a page's request, whether that is allowed. It is.
    Preflight,
    /// It is not allowed.
    Refuse(Refusal),
}

const NOT_AUTHENTICATED: Refusal = Refusal::new(401, "This needs a token: send Authorization: Bearer TOKEN.");
const VIEWER: Refusal = Refusal::new(403, "The token is a viewer's and may not change anything.");
const NOT_LOCAL: Refusal = Refusal::new(
    403,
    "Changes are allowed from this machine only; start the daemon with --token-file, or with --open to let \
     everybody change everything.",
);
const STRANGE_ORIGIN: Refusal =
    Refusal::new(403, "A page of another origin may not do this; --allow-origin lets it.");

/// The longest name that DNS has, with a port: as much of a strange Host is told.
const HOST_TOLD: usize = 253 + ":65535".len();

impl Access {
    /// Checks the rules and reads the token file, if they name one.
    ///
    /// # Errors
    /// A message for each fault: a bad token file, a malformed origin or name, or rules that exclude each
    /// other.
    pub fn new(mut rules: AccessRules) -> Result<Access, Vec<String>> {
        let mut faults = Vec::new();
        if rules.open && rules.token_file.is_some() {
            faults.push("a token file and --open exclude each other".to_owned());
        }
        for origin in rules.allow_origins.iter().filter(|origin| !is_origin(origin)) {
            faults.push(format!("{origin:?} is no origin such as https://console.example"));
        }
        for host in &mut rules.allow_hosts {
            if host.ends_with('.') {
                host.pop();
            }
            if !is_name(host) {
                faults
                    .push(format!("{host:?} is no name of a host, such as storage.example, without a port"));
            }
        }
        let tokens = rules
            .token_file
            .as_deref()
            .and_then(|path| Tokens::read(path).map_err(|error| faults.push(error.to_string())).ok());
        if !faults.is_empty() {
            return Err(faults);
        }
        if rules.open {
            log::warn!("--open: everybody who reaches this daemon may change and destroy everything");
        }
        let origins = rules.allow_origins.iter().map(|origin| origin.as_str().into()).collect();
        Ok(Access { rules, tokens, own: Own::default(), origins })
    }

    /// Whether every token is a viewer's.
    pub fn has_viewers_alone(&self) -> bool {
        self.tokens.as_ref().is_some_and(|tokens| !tokens.has_admin())
    }

    /// Makes a token with which the daemon itself may read, and change nothing.
    ///
    /// # Errors
    /// The kernel has no random numbers.
    pub fn own_token(&mut self) -> io::Result<String> {
        self.own.make()
    }

    /// Reads the token file again. A bad one is reported, and the tokens stay as they are.
    pub(super) fn reload(&mut self) {
        let Some(path) = &self.rules.token_file else { return };
        match Tokens::read(path) {
            Ok(tokens) => {
                log::info!("{tokens:?} read from {}", path.display());
                self.tokens = Some(tokens);
            }
            Err(error) => log::error!("{error}; the tokens read before stay valid"),
        }
    }

    /// Decides on a request.
    pub(super) fn judge(&self, peer: &Peer, method: &Method, fields: &Fields<'_>, class: Class) -> Verdict {
        let is_change = class == Class::Change;
        let allowed = |name: &[u8]| self.origins.iter().find(|origin| origin.as_bytes() == name);
        let origin = fields.origin.and_then(allowed).cloned();
        let preflight = *method == Method::Options && fields.origin.is_some() && fields.preflight;
        let (caller, refusal) = if let Some(host) = self.strange_host(peer, fields) {
            (None, Some(refused_host(host)))
        } else if (is_change || preflight) && origin.is_none() && !is_own_origin(fields) {
            (None, Some(STRANGE_ORIGIN))
        } else if preflight || class == Class::Public {
            (None, None)
        } else {
            self.rights(peer, fields, is_change)
        };
        let decision = match refusal {
            Some(refusal) => Decision::Refuse(refusal),
            None if preflight => Decision::Preflight,
            None => Decision::Pass,
        };
        Verdict { caller, origin, decision }
    }

    /// Protects against DNS rebinding: the owner of a foreign name lets it resolve to this machine.
    /// For a browser, pages of that name and this server then have the same origin, and only the
    /// Host shows the foreign name, which this gives. Where there are tokens this is not needed,
    /// because such a page has none, nor on a Unix socket, because no browser uses one.
    fn strange_host<'b>(&self, peer: &Peer, fields: &Fields<'b>) -> Option<&'b str> {
        let is_trusted = self.tokens.is_some() || *peer == Peer::Unix;
        fields.host.filter(|host| !is_trusted && !self.is_our_name(host_name(host)))
    }

    fn is_our_name(&self, name: &str) -> bool {
        let bare = name.strip_suffix('.').unwrap_or(name);
        let is = |other: &str| !other.is_empty() && bare.eq_ignore_ascii_case(other);
        let v6 = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
        v6.is_some_and(|name| name.parse::<Ipv6Addr>().is_ok())
            || name.parse::<Ipv4Addr>().is_ok()
            || is("localhost")
            || self.rules.allow_hosts.iter().any(|host| is(host))
            || rustix::system::uname()
                .nodename()
                .to_str()
                .is_ok_and(|host| is(host) || is(host.split('.').next().unwrap_or_default()))
    }

    /// The caller's name, and what it lacks to do this.
    fn rights(
        &self,
        peer: &Peer,
        fields: &Fields<'_>,
        is_change: bool,
    ) -> (Option<Arc<str>>, Option<Refusal>) {
        let Some(tokens) = &self.tokens else {
            let may = !is_change || self.rules.open || peer.is_local();
            return (None, (!may).then_some(NOT_LOCAL));
        };
        let token = fields.authorization.and_then(bearer);
        if !is_change && token.is_some_and(|token| self.own.is(token)) {
            return (None, None);
        }
        match token.and_then(|token| tokens.find(token)) {
            // Only root can open the socket, so no token is needed there.
            found if *peer == Peer::Unix => (found.map(|(_, name)| name), None),
            None => (None, Some(NOT_AUTHENTICATED)),
            Some((Role::Viewer, name)) if is_change => (Some(name), Some(VIEWER)),
            Some((_, name)) => (Some(name), None),
        }
    }
}

/// The refusal of a Host that is none of this machine's. It is ASCII, and may be as long as a head.
fn refused_host(host: &str) -> Refusal {
    let told = host.get(..HOST_TOLD).unwrap_or(host);
    let message = format!(
        "The Host {told:?} is neither an address nor a name of this machine; --allow-host adds a name."
    );
    Refusal { status: 403, message: message.into() }
}

/// The answer to a preflight that is allowed. Rendering adds the origin, as to every answer.
pub(super) fn preflight_answer() -> Response {
    Response::empty(204)
        .with_field("Access-Control-Allow-Methods", "GET, HEAD, POST")
        .with_field("Access-Control-Allow-Headers", "Authorization, Content-Type")
        .with_field("Access-Control-Max-Age", "600")
}

/// The token of `Bearer TOKEN`.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(b"Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token.trim_ascii())
}

/// Whether the request comes from no web page, or from a page of this server.
fn is_own_origin(fields: &Fields<'_>) -> bool {
    let Some(origin) = fields.origin else { return true };
    let host = [&b"http://"[..], b"https://"].iter().find_map(|scheme| origin.strip_prefix(*scheme));
    host.is_some_and(|host| fields.host.is_some_and(|own| own.as_bytes().eq_ignore_ascii_case(host)))
}

/// A Host without its port.
fn host_name(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

fn is_name(host: &str) -> bool {
    !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte))
}

/// Whether it is an origin as browsers write it: lower case, no path.
fn is_origin(origin: &str) -> bool {
    let host = origin.strip_prefix("https://").or(origin.strip_prefix("http://"));
    let is_host_byte =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._:[]".contains(&byte);
    host.is_some_and(|host| !host.is_empty() && host.bytes().all(is_host_byte))
}

#[cfg(test)]
mod tests;
