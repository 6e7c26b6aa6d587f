//! The one place where an error becomes a status, and the answer to a request that failed.

use serde_json::json;

use super::action::NoAction;
use super::answer;
use crate::http::Response;
use crate::storage::Error;

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
