//! Server-sent events, bytes in, `data` out. Pure and total: any bytes, cut anywhere, give the same
//! events. Names, ids and retry times of events are not used by this project and are skipped.
//! Used by `client`.

/// Collects bytes until events are complete.
#[derive(Debug, Default)]
pub(super) struct Parser {
    line: Vec<u8>,
    data: Option<String>,
    /// The last byte was CR: a LF that follows belongs to the same line end.
    after_cr: bool,
}

impl Parser {
    /// The data of the events that these bytes complete.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut events = Vec::new();
        for &byte in bytes {
            let ends_crlf = self.after_cr && byte == b'\n';
            self.after_cr = byte == b'\r';
            match byte {
                _ if ends_crlf => {}
                b'\r' | b'\n' => events.extend(self.end_line()),
                _ => self.line.push(byte),
            }
        }
        events
    }

    fn end_line(&mut self) -> Option<String> {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            return self.data.take();
        }
        let value = match line.strip_prefix(b"data") {
            Some([]) => &[],
            Some([b':', b' ', value @ ..] | [b':', value @ ..]) => value,
            _ => return None,
        };
        let value = String::from_utf8_lossy(value);
        match &mut self.data {
            Some(data) => {
                data.push('\n');
                data.push_str(&value);
            }
            None => self.data = Some(value.into_owned()),
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Vec<String> {
        Parser::default().push(text.as_bytes())
    }

    #[test]
    fn each_event_ends_with_an_empty_line() {
        assert_eq!(parse("data: {\"a\":1}\n\ndata: [DONE]\n\n"), ["{\"a\":1}", "[DONE]"]);
        assert!(parse("data: unfinished\n").is_empty());
    }

    #[test]
    fn lines_of_one_event_are_joined_and_other_fields_are_skipped() {
        assert_eq!(parse("event: x\n: note\ndata:a\ndata\ndata: b\nid: 1\n\n"), ["a\n\nb"]);
        assert!(parse("database: x\n\n\n\n").is_empty());
    }

    #[test]
    fn all_three_line_ends_count_once() {
        assert_eq!(parse("data: a\r\n\r\ndata: b\r\rdata: c\n\n"), ["a", "b", "c"]);
    }

    proptest! {
        #[test]
        fn any_bytes_cut_anywhere_give_the_same_events(
            bytes in proptest::collection::vec(
                prop_oneof![Just(b'\r'), Just(b'\n'), Just(b':'), Just(b'd'), any::<u8>()], 0..200),
            cut in 0_usize..200,
        ) {
            let whole = Parser::default().push(&bytes);
            let (head, rest) = bytes.split_at(cut.min(bytes.len()));
            let mut parser = Parser::default();
            let mut parts = parser.push(head);
            parts.extend(parser.push(rest));
            prop_assert_eq!(whole, parts);
        }

        #[test]
        fn what_a_server_sends_comes_back(events in proptest::collection::vec("[^\r\n]{0,20}", 0..9)) {
            let wire = events.iter().fold(String::new(), |wire, event| {
                format!("{wire}data: {event}\n\n")
            });
            prop_assert_eq!(parse(&wire), events);
        }
    }
}
