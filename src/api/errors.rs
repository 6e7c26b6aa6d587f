//! The one place where an error becomes a status, and the answer to a request that failed.

use serde_json::json;

use super::action::NoAction;
use super::answer;
use crate::http::Response;
use crate::storage::Error;

/// A code that an answer may have.
pub struct Code {
    /// The code.
    pub number: u16,
    /// Any request may be refused with it.
    pub is_general: bool,
    /// What it means, in Markdown.
    pub meaning: &'static str,
    /// The message of such a refusal; empty if it is none.
    pub message: &'static str,
    /// The header field that such a refusal may have.
    pub field: Option<&'static str>,
}

/// Every code that an answer may have, in ascending order.
pub static CODES: &[Code] = &[
    Code { is_general: false, ..code(200, "It is done, or here is what you asked for.", "") },
    Code { is_general: false, ..code(204, "The answer to a browser's preflight request.", "") },
    code(
        400,
        "The request is wrong: a number, a size, a name, a policy, or the percent-encoding; or it \
         is not valid HTTP, for example without `Host`.",
        "\"12abc\" is not a size: a number of MiB above 0, or one with M, MiB, G, GiB, T or TiB",
    ),
    Code {
        field: Some("WWW-Authenticate"),
        ..code(
            401,
            "The request has no token, or a wrong one. `WWW-Authenticate` says which kind is needed.",
            "This needs a token: send Authorization: Bearer TOKEN.",
        )
    },
    code(
        403,
        "This client, token, web page or host name may not do this.",
        "The token is a viewer's and may not change anything.",
    ),
    code(
        404,
        "There is no such path, or no such RAM disk, cache, source, port, export or network \
         interface.",
        "there is no RAM disk rd7",
    ),
    Code {
        field: Some("Allow"),
        ..code(405, "The path takes another method. `Allow` names it.", "this path takes POST")
    },
    code(408, "The request took too long to arrive.", "The request did not arrive in time."),
    Code {
        is_general: false,
        ..code(
            409,
            "The device exists, but this cannot be done to it now. The message says who uses it.",
            "rd0 is mounted on /mnt; unmount it first",
        )
    },
    code(413, "The body is too long.", "The body is too long."),
    code(414, "The path is too long.", "The request target is too long."),
    code(
        417,
        "The request has a header field `Expect` with something else than `100-continue`.",
        "The only Expect that is supported is 100-continue.",
    ),
    code(431, "The header fields are too long or too many.", "The request has too many header fields."),
    code(
        500,
        "The kernel refused for another reason: the message has the kernel's error, and the file \
         or the ioctl. Or a change failed and something could not be undone; or the program has a \
         fault.",
        "The daemon failed while it answered this request; its log says more.",
    ),
    code(
        501,
        "The request has `Transfer-Encoding`, which is not supported.",
        "Transfer-Encoding is not supported; send a Content-Length.",
    ),
    Code {
        field: Some("Retry-After"),
        ..code(
            503,
            "The kernel lacks what the call needs: the message says what to load or to mount. Or \
         there is no memory for the call or its answer at the moment. Or the server has too much \
         to do: then `Retry-After` says in how many seconds to try again.",
            "Too many requests are waiting; try again.",
        )
    },
    code(
        505,
        "The request is in another version of HTTP than 1.0 and 1.1.",
        "This server speaks HTTP/1.1 and HTTP/1.0.",
    ),
    Code {
        is_general: false,
        ..code(
            507,
            "The RAM disks would take more memory than `--memory-limit` allows.",
            "64 MiB do not fit: the RAM disks may take 64 MiB together, the others have 32 MiB; ask for less, remove one, or raise --memory-limit",
        )
    },
];

/// A code with which any request may be refused.
const fn code(number: u16, meaning: &'static str, message: &'static str) -> Code {
    Code { number, is_general: true, meaning, message, field: None }
}

/// The HTTP status of an error.
pub fn status(error: &Error) -> u16 {
    match error {
        Error::Invalid(_) => 400,
        Error::NotFound(_) => 404,
        Error::Conflict(_) => 409,
        Error::Kernel(_, error) if error.is_memory() => 503,
        Error::Kernel(..) | Error::NotUndone(..) => 500,
        Error::Unavailable(_) => 503,
        Error::NoMemory(_) => 507,
    }
}

/// The answer to a request that failed.
pub fn failed(status: u16, message: &str) -> Response {
    answer::json(status, &json!({"status": "Failed", "message": message}))
}

/// The answer to an action that the storage layer refused.
pub fn refused(error: &Error) -> Response {
    failed(status(error), &error.to_string())
}

/// The answer to a request that is no action.
pub fn no_action(why: &NoAction) -> Response {
    match why {
        NoAction::Invalid(message) => failed(400, message),
        NoAction::NoPath(message) => failed(404, message),
        NoAction::NoMethod(allowed) => {
            failed(405, &format!("this path takes {allowed}")).with_field("Allow", *allowed)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Body;

    #[test]
    fn each_error_has_its_status() {
        let text = || "x".to_owned();
        let kernel = || crate::kernel::Error { what: text(), errno: 5 };
        let no_memory = crate::kernel::Error { what: text(), errno: 12 };
        assert_eq!(status(&Error::Kernel(text(), no_memory)), 503);
        assert_eq!(status(&Error::Invalid(text())), 400);
        assert_eq!(status(&Error::NotFound(text())), 404);
        assert_eq!(status(&Error::Conflict(text())), 409);
        assert_eq!(status(&Error::Kernel(text(), kernel())), 500);
        assert_eq!(status(&Error::NotUndone(Box::new(Error::Conflict(text())), vec![])), 500);
        assert_eq!(status(&Error::Unavailable(text())), 503);
        assert_eq!(status(&Error::NoMemory(text())), 507);
    }

    /// The status, the header fields and the body as they go out.
    fn sent(response: Response) -> (u16, String, String) {
        let mut fields = vec![format!("Content-Type: {}", response.content_type().unwrap())];
        fields.extend(response.fields().iter().map(|(name, value)| format!("{name}: {value}")));
        let Body::Bytes(body) = response.body() else { panic!("{response:?}") };
        (response.status(), fields.join(", "), String::from_utf8(body.clone()).unwrap())
    }

    #[test]
    fn a_failure_answers_with_these_bytes() {
        let json = "Content-Type: application/json";
        let conflict = Error::Conflict("rd0 is mounted at \"/mnt\"".into());
        let body = "{\"message\":\"rd0 is mounted at \\\"/mnt\\\"\",\"status\":\"Failed\"}\n";
        assert_eq!(sent(refused(&conflict)), (409, json.into(), body.into()));
        let body = "{\"message\":\"this path takes GET, HEAD\",\"status\":\"Failed\"}\n";
        let fields = format!("{json}, Allow: GET, HEAD");
        assert_eq!(sent(no_action(&NoAction::NoMethod("GET, HEAD"))), (405, fields, body.into()));
        let body = "{\"message\":\"there is no /x\",\"status\":\"Failed\"}\n";
        assert_eq!(
            sent(no_action(&NoAction::NoPath("there is no /x".into()))),
            (404, json.into(), body.into())
        );
        let body = "{\"message\":\"no size\",\"status\":\"Failed\"}\n";
        assert_eq!(sent(no_action(&NoAction::Invalid("no size".into()))), (400, json.into(), body.into()));
    }
}
