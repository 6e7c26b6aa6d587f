//! The parameters of a request: the segments of its path and the options of its query. How they are cut out
//! of it, and what each of them may be.

use std::borrow::Cow;
use std::slice;

/// Segments of the longest path: `v1`, the name of the call and its parameters.
pub const MOST_SEGMENTS: usize = 6;

/// What a parameter is. A parameter of this name is the same in every path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// The name: in a path's template behind an `@`, or in front of the `=` of an option.
    pub name: &'static str,
    /// What it means: one sentence or more, in Markdown.
    pub description: &'static str,
    /// What it may be.
    pub values: Values,
    /// A value that is allowed.
    pub example: &'static str,
    /// How a refusal goes on after "… is not ".
    pub expected: &'static str,
}

/// The values of a parameter, after percent-decoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Values {
    /// Texts that match this regular expression as a whole.
    Pattern(&'static str),
    /// These texts.
    OneOf(&'static [&'static str]),
}

/// A type that a parameter is read as.
pub trait Parameter: Sized {
    /// What the parameter is.
    const KIND: Kind;

    /// Reads a value, after percent-decoding; `None` if it is not allowed.
    fn read(text: &str) -> Option<Self>;
}

/// The result of reading parameters; an error is the message of the refusal.
pub type Parsed<T> = Result<T, String>;

/// The parameters of a request, in the order of its path, and its options.
pub struct Parameters<'a> {
    template: slice::Iter<'a, &'static str>,
    segments: slice::Iter<'a, Cow<'a, str>>,
    options: Options<'a>,
}

impl<'a> Parameters<'a> {
    /// The texts in `segments` at the places where `template` has a name, and options.
    pub fn new(
        template: &'a [&'static str],
        segments: &'a [Cow<'a, str>],
        options: Options<'a>,
    ) -> Parameters<'a> {
        Parameters { template: template.iter(), segments: segments.iter(), options }
    }

    /// The option that is read as a `T`; `None` if it is not given.
    ///
    /// # Errors
    /// The message of the refusal, if a `T` cannot have this text.
    pub fn option<T: Parameter>(&self) -> Parsed<Option<T>> {
        let given = self.options.0.iter().find(|(name, _)| *name == T::KIND.name);
        given.map(|(_, text)| T::read(text).ok_or_else(|| refusal(text, T::KIND.expected))).transpose()
    }

    /// The next parameter, read as a `T`.
    ///
    /// # Errors
    /// The message of the refusal, if a `T` cannot have this text.
    pub fn take<T: Parameter>(&mut self) -> Parsed<T> {
        let text = self.text_of(T::KIND.name);
        T::read(text).ok_or_else(|| refusal(text, T::KIND.expected))
    }

    fn text_of(&mut self, kind: &str) -> &'a str {
        let (name, text) = self.next_text().expect("no more parameters are read than the path has");
        debug_assert_eq!(name, kind, "the path's parameter is read as another kind");
        text
    }

    /// The name and the text of the next parameter.
    pub fn next_text(&mut self) -> Option<(&'static str, &'a str)> {
        let mut pairs = self.template.by_ref().zip(self.segments.by_ref());
        pairs.find_map(|(part, text)| Some((part.strip_prefix('@')?, &**text)))
    }
}

fn refusal(text: &str, expected: &str) -> String {
    format!("{text:?} is not {expected}")
}

/// The options of a query, percent-decoded, each of them once.
pub struct Options<'a>(Vec<(&'static str, Cow<'a, str>)>);

impl<'a> Options<'a> {
    /// Reads `NAME=TEXT&…`, where each name is one of `known`.
    ///
    /// # Errors
    /// The message of the refusal: another name, one that is there twice, or a query that is not well
    /// percent-encoded.
    pub fn of(query: &'a str, known: &[Kind]) -> Parsed<Options<'a>> {
        let mut options = Options(Vec::new());
        for part in query.split('&').filter(|part| !part.is_empty()) {
            let (name, text) = part.split_once('=').unwrap_or((part, ""));
            let decoded = decode(name).zip(decode(text));
            let (name, text) = decoded.ok_or_else(|| format!("{part} is not well percent-encoded"))?;
            let Some(kind) = known.iter().find(|kind| kind.name == name) else {
                let names: Vec<_> = known.iter().map(|kind| kind.name).collect();
                return Err(match &names[..] {
                    [] => format!("{name:?} is not an option of this call, which has none"),
                    names => {
                        format!("{name:?} is not an option of this call, which has {}", names.join(", "))
                    }
                });
            };
            if options.0.iter().any(|(name, _)| *name == kind.name) {
                return Err(format!("the option {name} is there twice"));
            }
            options.0.push((kind.name, text));
        }
        Ok(options)
    }
}

/// The segments of a path, percent-decoded. Those without a percent sign are borrowed.
pub struct Segments<'a> {
    texts: [Cow<'a, str>; MOST_SEGMENTS],
    count: usize,
}

impl<'a> Segments<'a> {
    /// Cuts `path` at its slashes; `None` if it is not well percent-encoded.
    pub fn of(path: &'a str) -> Option<Segments<'a>> {
        let mut segments = Segments { texts: [const { Cow::Borrowed("") }; MOST_SEGMENTS], count: 0 };
        for encoded in path.split('/').skip(1) {
            let text = decode(encoded)?;
            if let Some(place) = segments.texts.get_mut(segments.count) {
                *place = text;
            }
            segments.count += 1;
        }
        Some(segments)
    }

    /// The segments; `None` if there are more than any path has.
    pub fn texts(&self) -> Option<&[Cow<'a, str>]> {
        self.texts.get(..self.count)
    }
}

/// Percent-decodes one segment, once. `None` if that is not possible or gives no UTF-8.
fn decode(segment: &str) -> Option<Cow<'_, str>> {
    if !segment.contains('%') {
        return Some(Cow::Borrowed(segment));
    }
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.bytes();
    while let Some(byte) = rest.next() {
        let byte = match byte {
            b'%' => 16 * digit(rest.next()?)? + digit(rest.next()?)?,
            byte => byte,
        };
        bytes.push(byte);
    }
    String::from_utf8(bytes).ok().map(Cow::Owned)
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).map(|digit| digit as u8)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_what_is_encoded_is_copied() {
        let segments = Segments::of("/v1/createRapidDiskCache/rd0/mapper%2Fvg0/writeback").unwrap();
        let texts = segments.texts().unwrap();
        assert_eq!(texts, ["v1", "createRapidDiskCache", "rd0", "mapper/vg0", "writeback"]);
        let owned: Vec<_> = texts.iter().map(|text| matches!(text, Cow::Owned(_))).collect();
        assert_eq!(owned, [false, false, false, true, false]);
    }

    #[test]
    fn a_path_with_more_segments_than_any_has_none_but_is_checked() {
        assert!(Segments::of("/1/2/3/4/5/6").unwrap().texts().is_some());
        assert!(Segments::of("/1/2/3/4/5/6/7").unwrap().texts().is_none());
        assert!(Segments::of("/1/2/3/4/5/6/%").is_none());
    }

    #[test]
    fn parameters_are_the_segments_that_have_a_name() {
        let segments = Segments::of("/v1/resizeRapidDisk/rd0/1GiB").unwrap();
        let template = ["v1", "resizeRapidDisk", "@disk", "@size"];
        let options = Options::of("", &[]).unwrap();
        let mut parameters = Parameters::new(&template, segments.texts().unwrap(), options);
        assert_eq!(parameters.next_text(), Some(("disk", "rd0")));
        assert_eq!(parameters.next_text(), Some(("size", "1GiB")));
        assert_eq!(parameters.next_text(), None);
    }

    proptest! {
        /// Any text survives being encoded and decoded once.
        #[test]
        fn decoding_undoes_encoding(text in "\\PC{0,40}") {
            let encoded: String = text.bytes().map(|byte| format!("%{byte:02X}")).collect();
            prop_assert_eq!(decode(&encoded), Some(Cow::from(text)));
        }
    }
}
