//! The token file: who may do what.
//!
//! Lines of `ROLE NAME TOKEN`, separated by blanks; `#` begins a comment line. A token is held
//! once, here, and goes into no message, log line or `Debug` output.

use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use rustix::rand::{GetRandomFlags, getrandom};
use std::fmt;
use std::fs::File;
use std::hint::black_box;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

/// The longest token file that is read; far more than anybody needs.
const LONGEST_FILE: u64 = 64 << 10;

/// Tokens shorter than this can be guessed; they are accepted, with a warning.
const SHORT: usize = 16;

const ROOT: u32 = 0;

/// What a token's holder may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Read and change everything.
    Admin,
    /// Read everything.
    Viewer,
}

struct Token {
    role: Role,
    name: Arc<str>,
    secret: Secret,
}

/// A token's bytes, overwritten when they are no longer needed.
struct Secret(Box<[u8]>);

impl Secret {
    /// Takes the same time for every candidate of the same length.
    fn is(&self, candidate: &[u8]) -> bool {
        let same_length = self.0.len() == candidate.len();
        let differences = self.0.iter().zip(candidate).fold(0, |sum, (a, b)| black_box(sum | (a ^ b)));
        same_length & (black_box(differences) == 0)
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

/// Overwrites bytes. The compiler may not leave that out: for all it knows, they are read afterwards.
fn wipe(bytes: &mut [u8]) {
    bytes.fill(0);
    black_box(bytes);
}

/// All tokens.
#[derive(Default)]
pub(super) struct Tokens(Vec<Token>);

/// Shows how many there are, and nothing else.
impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tokens", self.0.len())
    }
}

impl Tokens {
    /// Reads a token file, which only root may read or write.
    ///
    /// # Errors
    /// It cannot be read, others than root could, or a line of it is wrong; the path is named.
    pub fn read(path: &Path) -> io::Result<Tokens> {
        Tokens::read_owned_by(path, ROOT)
    }

    pub(super) fn read_owned_by(path: &Path, owner: u32) -> io::Result<Tokens> {
        let name = |error: io::Error| {
            io::Error::new(error.kind(), format!("token file {}: {error}", path.display()))
        };
        let mut text = read_private(path, owner).map_err(name)?;
        let tokens = Tokens::parse(&text);
        wipe(&mut text);
        tokens.map_err(|error| name(io::Error::new(io::ErrorKind::InvalidData, error)))
    }

    /// Parses the text of a token file.
    ///
    /// # Errors
    /// The number of the wrong line, and what is wrong with it.
    pub(super) fn parse(text: &[u8]) -> Result<Tokens, String> {
        let mut tokens: Vec<Token> = Vec::new();
        for (number, line) in (1..).zip(text.split(|&byte| byte == b'\n')) {
            let line = line.trim_ascii();
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            let token = parse_line(line).map_err(|error| format!("line {number}: {error}"))?;
            if tokens.iter().any(|other| other.name == token.name || other.secret.is(&token.secret.0)) {
                return Err(format!("line {number}: its name or token is in an earlier line as well"));
            }
            if token.secret.0.len() < SHORT {
                log::warn!("the token of {} is short and can be guessed", token.name);
            }
            tokens.push(token);
        }
        if tokens.is_empty() {
            return Err("there is no token in it".to_owned());
        }
        Ok(Tokens(tokens))
    }

    /// Whether one of them is an admin's.
    pub(super) fn has_admin(&self) -> bool {
        self.0.iter().any(|token| token.role == Role::Admin)
    }

    /// The holder of a token. Every token is compared, so that the time does not tell which one it is.
    pub(super) fn find(&self, candidate: &[u8]) -> Option<(Role, Arc<str>)> {
        let matching = |found, token| if Token::is(token, candidate) { Some(token) } else { found };
        self.0.iter().fold(None, matching).map(|token| (token.role, Arc::clone(&token.name)))
    }
}

impl Token {
    fn is(&self, candidate: &[u8]) -> bool {
        self.secret.is(candidate)
    }
}

/// A viewer's token that is in no file: with it the daemon sends requests to itself.
#[derive(Default)]
pub(super) struct Own(Option<Secret>);

impl Own {
    /// Makes the token. Only the caller knows it.
    ///
    /// # Errors
    /// The kernel has no random numbers.
    pub fn make(&mut self) -> io::Result<String> {
        let mut random = [0; 32];
        if getrandom(&mut random[..], GetRandomFlags::empty())? < random.len() {
            return Err(io::Error::other("the kernel gave too few random numbers"));
        }
        let token: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        self.0 = Some(Secret(token.as_bytes().into()));
        Ok(token)
    }

    /// Whether `candidate` is this token.
    pub fn is(&self, candidate: &[u8]) -> bool {
        self.0.as_ref().is_some_and(|own| own.is(candidate))
    }
}

/// Shows nothing of the token.
impl fmt::Debug for Own {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Own")
    }
}

fn parse_line(line: &[u8]) -> Result<Token, &'static str> {
    let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let (Some(role), Some(name), Some(secret), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err("it is not ROLE NAME TOKEN");
    };
    let role = match role {
        b"admin" => Role::Admin,
        b"viewer" => Role::Viewer,
        _ => return Err("the role is neither admin nor viewer"),
    };
    let is_name_byte = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._@".contains(byte);
    let name = std::str::from_utf8(name).ok().filter(|name| name.bytes().all(|byte| is_name_byte(&byte)));
    let Some(name) = name.filter(|name| name.len() <= 64) else {
        return Err("the name is not of up to 64 letters, digits and -._@");
    };
    if !secret.iter().all(u8::is_ascii_graphic) {
        return Err("the token is not printable ASCII");
    }
    Ok(Token { role, name: name.into(), secret: Secret(secret.into()) })
}

fn read_private(path: &Path, owner: u32) -> io::Result<Vec<u8>> {
    // Opening a FIFO would wait for its other end for ever.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = File::from(open(path, flags, Mode::empty())?);
    let stat = fstat(&file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(io::Error::other("it is not a regular file"));
    }
    if stat.st_uid != owner {
        return Err(io::Error::other("it must belong to root"));
    }
    if stat.st_mode & 0o177 != 0 {
        return Err(io::Error::other("its mode must be 0600, so that nobody but root can read it"));
    }
    // All at once: a buffer that grows leaves copies of its content behind.
    let mut text = Vec::with_capacity(LONGEST_FILE as usize + 1);
    file.take(LONGEST_FILE + 1).read_to_end(&mut text)?;
    if text.len() as u64 > LONGEST_FILE {
        wipe(&mut text);
        return Err(io::Error::other("it is longer than 64 KiB"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests;
