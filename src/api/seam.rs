//! Stands in for the types of `crate::http` that are not there yet: a merge replaces
//! `super::seam` by `crate::http` and deletes this file.

use std::borrow::Cow;

use crate::http::{Answer, Header};

/// What a request asks for, and what the server has to know about it.
#[derive(Debug, PartialEq, Eq)]
pub struct Call<A> {
    /// What the request asks for.
    pub action: A,
    /// How it is carried out.
    pub class: Class,
    /// Bytes of a body that the action takes; 0: none.
    pub body: usize,
}

/// How an action is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A read answered out of memory on the I/O thread.
    Instant,
    /// A read for a worker.
    Read,
    /// Changes something, for a worker, audited.
    Change,
}

/// An answer.
#[derive(Debug)]
pub struct Response {
    status: u16,
    fields: Vec<(&'static str, Cow<'static, str>)>,
    body: String,
}

impl Response {
    /// An answer with a body.
    pub fn new(status: u16, content_type: &'static str, body: String) -> Response {
        Response { status, fields: vec![("Content-Type", content_type.into())], body }
    }

    /// The same with another header field.
    pub fn with_field(mut self, name: &'static str, value: impl Into<Cow<'static, str>>) -> Response {
        self.fields.push((name, value.into()));
        self
    }

    /// As the server takes it today.
    pub fn into_answer(self) -> Answer {
        let answer = Answer::from_data(self.body).with_status_code(self.status);
        let header = |(name, value): (&str, Cow<'_, str>)| Header::from_bytes(name, value.as_bytes());
        self.fields.into_iter().filter_map(|field| header(field).ok()).fold(answer, Answer::with_header)
    }
}
