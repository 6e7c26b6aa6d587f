//! The names of mapped devices.

use std::fmt;

/// Longest name, in bytes (`DM_NAME_LEN` less the NUL).
pub const NAME_MAX: usize = 127;

/// The name of a mapped device: 1 to [`NAME_MAX`] bytes of `0-9A-Za-z#+-.:=@_`,
/// the characters that udev leaves as they are, and neither `.` nor `..`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(String);

impl Name {
    /// Checks a name; `None` if it is not one.
    pub fn new(name: &str) -> Option<Name> {
        let fits = (1..=NAME_MAX).contains(&name.len()) && name.chars().all(Name::allows);
        (fits && !matches!(name, "." | "..")).then(|| Name(name.to_owned()))
    }

    /// Whether a name may have this character.
    pub fn allows(c: char) -> bool {
        c.is_ascii_alphanumeric() || "#+-.:=@_".contains(c)
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_hold_what_udev_leaves_alone() {
        for good in ["a", "rc-wt_sda", "vg0-home", "a#+-.:=@_Z9", &"x".repeat(NAME_MAX)] {
            assert_eq!(Name::new(good).unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "a/b", "a b", "a\0", "a\\x20", "é", "a%2f", &"x".repeat(NAME_MAX + 1)] {
            assert_eq!(Name::new(bad), None, "{bad:?}");
        }
    }
}
