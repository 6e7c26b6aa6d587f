//! Who gets in, request by request.

use super::*;

const ADMIN: &str = "Bearer admin-admin-admin-admin";
const VIEW: &str = "bearer viewer-viewer-viewer-viewer";

fn open() -> Access {
    Access::new(AccessRules { open: true, ..AccessRules::default() }).unwrap()
}

fn with_tokens() -> Access {
    let text = b"admin ops admin-admin-admin-admin\nviewer eye viewer-viewer-viewer-viewer\n";
    Access { tokens: Some(Tokens::parse(text).unwrap()), ..Access::default() }
}

fn allowing(hosts: &[&str], origins: &[&str]) -> Access {
    let own = |names: &[&str]| names.iter().map(|name| name.to_string()).collect();
    let rules =
        AccessRules { allow_hosts: own(hosts), allow_origins: own(origins), ..AccessRules::default() };
    Access::new(rules).unwrap()
}

fn ip(text: &str) -> Peer {
    Peer::Ip(format!("{text}:4711").parse().unwrap())
}

fn fields<'b>(host: &'b str, origin: Option<&'b str>, authorization: Option<&'b str>) -> Fields<'b> {
    Fields {
        host: Some(host),
        origin: origin.map(str::as_bytes),
        authorization: authorization.map(str::as_bytes),
        preflight: false,
    }
}

fn class(is_change: bool) -> Class {
    if is_change { Class::Change } else { Class::Read }
}

/// The status of a refusal, or 0 for a request that passes.
fn status(access: &Access, peer: &Peer, fields: &Fields<'_>, is_change: bool) -> u16 {
    let method = if is_change { Method::Post } else { Method::Get };
    match access.judge(peer, &method, fields, class(is_change)).decision {
        Decision::Pass => 0,
        Decision::Preflight => 204,
        Decision::Refuse(refusal) => refusal.status,
    }
}

#[test]
fn without_tokens_everybody_reads_and_this_machine_changes() {
    let access = Access::default();
    let plain = fields("192.0.2.1:9118", None, None);
    for peer in ["127.0.0.1", "127.9.8.7", "[::1]", "[::ffff:127.0.0.1]"].map(ip) {
        assert_eq!(status(&access, &peer, &plain, true), 0, "{peer}");
    }
    assert_eq!(status(&access, &Peer::Unix, &plain, true), 0);
    for peer in ["192.0.2.9", "[2001:db8::1]", "[::ffff:192.0.2.9]", "0.0.0.0", "[::]", "[fe80::1]"].map(ip) {
        assert_eq!(status(&access, &peer, &plain, true), 403, "{peer}");
        assert_eq!(status(&access, &peer, &plain, false), 0, "{peer}");
    }
}

#[test]
fn open_lets_everybody_change() {
    assert_eq!(status(&open(), &ip("192.0.2.9"), &fields("192.0.2.1", None, None), true), 0);
}

#[test]
fn with_tokens_nobody_comes_in_without_one() {
    let access = with_tokens();
    for peer in ["127.0.0.1", "192.0.2.9"].map(ip) {
        for wrong in [
            None,
            Some(""),
            Some("Bearer"),
            Some("Bearer "),
            Some("Bearer wrong"),
            Some("admin-admin-admin-admin"),
            Some("Basic admin-admin-admin-admin"),
            Some("Bearer admin-admin-admin-admin x"),
            Some("Bearer ops"),
        ] {
            for is_change in [false, true] {
                assert_eq!(status(&access, &peer, &fields("a", None, wrong), is_change), 401, "{wrong:?}");
            }
        }
        assert_eq!(status(&access, &peer, &fields("a", None, Some(ADMIN)), true), 0);
        assert_eq!(status(&access, &peer, &fields("a", None, Some(VIEW)), false), 0);
        assert_eq!(status(&access, &peer, &fields("a", None, Some(VIEW)), true), 403);
    }
    // The socket's mode is its token.
    assert_eq!(status(&access, &Peer::Unix, &fields("a", None, None), true), 0);
}

#[test]
fn a_public_page_needs_no_token_but_the_right_host() {
    let public = |access: &Access, host| {
        let fields = fields(host, Some("https://evil.example"), None);
        access.judge(&ip("192.0.2.9"), &Method::Get, &fields, Class::Public).decision
    };
    assert_eq!(public(&with_tokens(), "a"), Decision::Pass);
    assert_eq!(public(&Access::default(), "localhost"), Decision::Pass);
    assert_eq!(public(&Access::default(), "evil.example"), Decision::Refuse(refused_host("evil.example")));
}

#[test]
fn callers_are_known_by_name_when_refused_too() {
    let access = with_tokens();
    let caller = |authorization| {
        let fields = fields("a", None, authorization);
        access.judge(&ip("192.0.2.9"), &Method::Post, &fields, Class::Change).caller
    };
    assert_eq!(caller(Some(ADMIN)).as_deref(), Some("ops"));
    assert_eq!(caller(Some(VIEW)).as_deref(), Some("eye"));
    assert_eq!(caller(None), None);
}

#[test]
fn rebound_names_are_refused_for_reads_too() {
    let access = allowing(&["storage.example", "dotted.example."], &[]);
    let of = |host: &str, peer: &Peer| status(&access, peer, &fields(host, None, None), false);
    let local = ip("127.0.0.1");
    let hostname = rustix::system::uname().nodename().to_str().unwrap().to_owned();
    for fine in [
        "localhost",
        "LOCALHOST:9118",
        "localhost.",
        "127.0.0.1:9118",
        "10.0.0.185",
        "[::1]:9118",
        "[2001:db8::1]",
        "storage.example",
        "Storage.Example:80",
        "dotted.example",
        "dotted.example.:9118",
        &hostname,
        &format!("{hostname}:9118"),
    ] {
        assert_eq!(of(fine, &local), 0, "{fine}");
    }
    for strange in [
        "",
        ":9118",
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "[evil]",
        "x.storage.example",
        "1",
        "0x7f000001",
        "localhost:x",
        ".",
        &format!("{hostname}.evil.example"),
    ] {
        assert_eq!(of(strange, &local), 403, "{strange}");
        assert_eq!(of(strange, &Peer::Unix), 0, "{strange}");
    }
    assert_eq!(status(&open(), &local, &fields("evil.example", None, None), false), 403);
    assert_eq!(status(&with_tokens(), &local, &fields("evil.example", None, Some(ADMIN)), false), 0);
    assert_eq!(status(&access, &local, &Fields::default(), false), 0);
}

#[test]
fn pages_of_other_origins_change_nothing() {
    let local = ip("127.0.0.1");
    for access in [Access::default(), open(), with_tokens()] {
        for (origin, want) in [
            ("http://localhost:9118", 0),
            ("https://LOCALHOST:9118", 0),
            ("http://localhost", 403),
            ("http://localhost:9118.evil.example", 403),
            ("http://evil.example", 403),
            ("null", 403),
            ("", 403),
            ("\u{e9}", 403),
        ] {
            let fields = fields("localhost:9118", Some(origin), Some(ADMIN));
            assert_eq!(status(&access, &local, &fields, true), want, "{origin}");
            assert_eq!(status(&access, &local, &fields, false), 0, "{origin}");
        }
    }
}

#[test]
fn an_allowed_origin_is_answered_and_others_are_not() {
    let access = allowing(&[], &["https://console.example"]);
    let judge = |origin, method: Method, preflight| {
        let fields = Fields { preflight, ..fields("127.0.0.1", Some(origin), None) };
        access.judge(&ip("127.0.0.1"), &method, &fields, class(method == Method::Post))
    };
    let fine = judge("https://console.example", Method::Post, false);
    assert_eq!((fine.origin.as_deref(), fine.decision), (Some("https://console.example"), Decision::Pass));
    let question = judge("https://console.example", Method::Options, true);
    assert_eq!(question.decision, Decision::Preflight);
    assert_eq!(question.origin.as_deref(), Some("https://console.example"));
    for (origin, method, preflight) in [
        ("https://evil.example", Method::Post, false),
        ("https://console.example.evil.example", Method::Options, true),
        ("http://console.example", Method::Options, true),
    ] {
        let strange = judge(origin, method, preflight);
        assert_eq!((strange.origin, strange.decision), (None, Decision::Refuse(STRANGE_ORIGIN)), "{origin}");
    }
    // No preflight: as any other method.
    assert_eq!(judge("https://console.example", Method::Options, false).decision, Decision::Pass);
}

#[test]
fn a_preflight_needs_no_token_and_what_follows_does() {
    let access = Access { origins: vec!["https://console.example".into()], ..with_tokens() };
    let fields = Fields { preflight: true, ..fields("a", Some("https://console.example"), None) };
    let peer = ip("192.0.2.9");
    assert_eq!(access.judge(&peer, &Method::Options, &fields, Class::Read).decision, Decision::Preflight);
    let then = access.judge(&peer, &Method::Post, &fields, Class::Change);
    assert_eq!(then.decision, Decision::Refuse(NOT_AUTHENTICATED));
    assert!(then.origin.is_some(), "the page must be able to read the refusal");
}

#[test]
fn contradictory_or_malformed_rules_are_errors() {
    let error = |rules| Access::new(rules).unwrap_err().concat();
    let both = AccessRules { open: true, token_file: Some("/nonexistent".into()), ..AccessRules::default() };
    assert!(error(both).contains("--open"));
    for origin in ["console.example", "https://", "https://a/", "https://A", "*", "null", "ftp://a"] {
        let rules = AccessRules { allow_origins: vec![origin.to_owned()], ..AccessRules::default() };
        assert!(error(rules).contains(origin), "{origin}");
    }
}

#[test]
fn a_host_to_allow_that_could_never_match_is_an_error() {
    for host in ["storage.example:9118", "[::1]", "http://storage.example", ".", "", "a b", "caf\u{e9}"] {
        let rules = AccessRules { allow_hosts: vec![host.to_owned()], ..AccessRules::default() };
        let error = Access::new(rules).unwrap_err().concat();
        assert!(error.contains("without a port"), "{host}: {error}");
    }
}

#[test]
fn a_bad_token_file_keeps_the_old_tokens() {
    let mut access = with_tokens();
    access.rules.token_file = Some("/nonexistent/tokens".into());
    access.reload();
    assert_eq!(status(&access, &ip("192.0.2.9"), &fields("a", None, Some(ADMIN)), true), 0);
}

#[test]
fn the_daemons_own_token_reads_and_changes_nothing() {
    let mut access = with_tokens();
    let own = access.own_token().unwrap();
    assert_eq!(own.len(), 64);
    assert!(!format!("{access:?}").contains(&own));
    let bearer = format!("Bearer {own}");
    let mine = fields("localhost", None, Some(&bearer));
    assert_eq!([false, true].map(|is_change| status(&access, &ip("127.0.0.1"), &mine, is_change)), [0, 401]);
    let next = access.own_token().unwrap();
    assert_ne!(own, next);
    assert_eq!(status(&access, &ip("127.0.0.1"), &mine, false), 401);
    // Without one, nothing is it.
    let empty = fields("localhost", None, Some("Bearer "));
    assert_eq!(status(&with_tokens(), &ip("127.0.0.1"), &empty, false), 401);
}
