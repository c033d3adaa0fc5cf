//! From a continuation's bytes to text that is certain: no half characters, nothing that may
//! still turn out to be a stop string. Pure and total. Used by `core/request.rs`.

/// The text of one continuation.
#[derive(Clone, Debug, Default)]
pub struct TextStream {
    stops: Vec<String>,
    /// The first bytes of an unfinished character.
    unfinished: Vec<u8>,
    /// Text that may be the beginning of a stop string.
    held: String,
}

/// What became certain with some bytes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Release {
    /// This text; it may be empty.
    Text(String),
    /// A stop string is complete; this text comes before it.
    Stopped(String),
}

impl TextStream {
    /// Stop strings are not empty.
    pub fn new(stops: Vec<String>) -> Self {
        Self { stops, ..Self::default() }
    }

    /// Takes the bytes of one token.
    pub fn push(&mut self, bytes: &[u8]) -> Release {
        self.unfinished.extend_from_slice(bytes);
        self.decode();
        // The string that is complete first wins, whatever tokens the text comes in.
        let found = self
            .stops
            .iter()
            .filter_map(|stop| self.held.find(stop).map(|start| (start + stop.len(), start)))
            .min();
        if let Some((_, start)) = found {
            self.held.truncate(start);
            return Release::Stopped(std::mem::take(&mut self.held));
        }
        let held_from = (0..self.held.len())
            .filter(|&start| self.held.is_char_boundary(start))
            .find(|&start| {
                let (_, suffix) = self.held.split_at(start);
                self.stops.iter().any(|stop| stop.starts_with(suffix))
            })
            .unwrap_or(self.held.len());
        let rest = self.held.split_off(held_from);
        Release::Text(std::mem::replace(&mut self.held, rest))
    }

    /// Bytes that are held back.
    pub fn n_held(&self) -> usize {
        self.held.len() + self.unfinished.len()
    }

    /// Whether what is held back may be the beginning of a stop string.
    pub fn may_stop(&self) -> bool {
        !self.stops.is_empty() && 0 < self.n_held()
    }

    /// What was held back, at the end.
    pub fn finish(mut self) -> String {
        self.held.push_str(&String::from_utf8_lossy(&self.unfinished));
        self.held
    }

    /// Moves whole characters from `unfinished` to `held`; impossible bytes become U+FFFD.
    fn decode(&mut self) {
        let bytes = std::mem::take(&mut self.unfinished);
        let mut chunks = bytes.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            self.held.push_str(chunk.valid());
            if chunk.invalid().is_empty() {
                continue;
            }
            let may_go_on = chunks.peek().is_none()
                && std::str::from_utf8(chunk.invalid()).is_err_and(|e| e.error_len().is_none());
            if may_go_on {
                self.unfinished = chunk.invalid().to_vec();
            } else {
                self.held.push(char::REPLACEMENT_CHARACTER);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(release: Release) -> String {
        match release {
            Release::Text(text) => text,
            Release::Stopped(text) => panic!("stopped after {text:?}"),
        }
    }

    #[test]
    fn half_a_character_waits_for_its_other_half() {
        let mut stream = TextStream::new(Vec::new());
        assert_eq!(text(stream.push(&[0xe2, 0x82])), "");
        assert_eq!(text(stream.push(&[0xac, b'!'])), "€!");
        assert_eq!(text(stream.push(&[0xe2])), "");
        assert_eq!(stream.finish(), "\u{fffd}");
    }

    #[test]
    fn the_beginning_of_a_stop_string_waits_until_it_cannot_be_one() {
        let mut stream = TextStream::new(vec!["###".to_owned()]);
        assert_eq!(text(stream.push(b"a##")), "a");
        assert_eq!(text(stream.push(b"b#")), "##b");
        assert_eq!(stream.push(b"## tail"), Release::Stopped(String::new()));
    }

    /// The same rule, told over the whole text at once.
    fn reference(bytes: &[u8], stops: &[String]) -> String {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let found =
            stops.iter().filter_map(|s| text.find(s.as_str()).map(|at| (at + s.len(), at))).min();
        match found {
            Some((_, start)) => text.split_at(start).0.to_owned(),
            None => text,
        }
    }

    proptest! {
        #[test]
        fn any_cut_of_any_bytes_gives_the_same_text(
            bytes in prop::collection::vec(
                prop_oneof![3 => Just(b'a'), 3 => Just(b'b'), 1 => any::<u8>(), 1 => 0x80_u8..0xf5],
                0..60,
            ),
            cuts in prop::collection::vec(1_usize..5, 60),
            stops in prop::collection::vec("[ab]{1,4}", 0..3),
        ) {
            let mut stream = TextStream::new(stops.clone());
            let mut out = String::new();
            let mut rest = bytes.as_slice();
            let mut stopped = false;
            for cut in cuts {
                if rest.is_empty() {
                    break;
                }
                let (head, rest_of_text) = rest.split_at(cut.min(rest.len()));
                rest = rest_of_text;
                match stream.push(head) {
                    Release::Text(text) => out.push_str(&text),
                    Release::Stopped(text) => {
                        out.push_str(&text);
                        stopped = true;
                        break;
                    }
                }
            }
            if !stopped {
                out.push_str(&stream.finish());
            }
            prop_assert_eq!(out, reference(&bytes, &stops));
        }
    }
}
