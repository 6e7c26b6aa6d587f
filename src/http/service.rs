//! What the server asks of the program behind it.

use super::message::{Method, Response};

/// The program behind the server.
pub trait Service: Send + Sync + 'static {
    /// What a request asks for. It travels from the I/O thread to the worker. Reads that ask for
    /// equal things and wait at the same time get one answer.
    type Action: PartialEq + Send + 'static;

    /// Finds out what a request asks for: called once for each, on the I/O thread, as soon as the
    /// request's head is complete. It must be quick and touch nothing. It cannot fail: a path that
    /// does not exist is an action too, an instant one that answers with a refusal. A panic in it
    /// is answered with 500.
    fn route(&self, method: &Method, target: &str) -> Call<Self::Action>;

    /// Carries an action out. `body` is empty where the call takes none. A panic in it is answered
    /// with 500. HEAD is answered like GET: the server leaves the body out and keeps its length.
    fn answer(&self, action: &Self::Action, body: &[u8]) -> Response;

    /// The answer for what the server itself refuses: a status and a sentence.
    fn refusal(&self, status: u16, message: &str) -> Response;
}

/// What a request asks for, and how it is to be treated.
#[derive(Debug, PartialEq, Eq)]
pub struct Call<A> {
    /// What is to be done.
    pub action: A,
    /// Who may ask for it, and who answers.
    pub class: Class,
    /// Bytes of a body that the action takes; 0: it takes none.
    pub body: usize,
}

/// Kinds of calls: who may make them, and which thread answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// A page without data. Everybody may read it, without a token. Answered out of memory, on the
    /// I/O thread.
    Public,
    /// A read that is answered out of memory, on the I/O thread, without any call that could wait:
    /// it is answered even while every worker is held by a slow kernel call.
    Instant,
    /// A read that may take time: a worker answers it, or a thread that gives the loop up for it.
    Read,
    /// A change, which a worker makes and the audit log tells.
    Change,
}
