//! From source to tokens: what is text and what is code, and which line ends and blanks around a tag
//! belong to nobody (`trim_blocks` and `lstrip_blocks`, as Hugging Face sets them). Used by `parser`.

use crate::error::TemplateError;
use crate::text::is_space;

/// One token.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Token {
    /// Text between tags.
    Data(String),
    BlockBegin,
    BlockEnd,
    OutputBegin,
    OutputEnd,
    Name(String),
    Text(String),
    Int(i64),
    Float(f64),
    /// An operator or bracket.
    Mark(&'static str),
    End,
}

/// The longest first.
const MARKS: [&str; 26] = [
    "**", "//", "==", "!=", ">=", "<=", "+", "-", "*", "/", "%", "~", "[", "]", "(", ")", "{", "}",
    ">", "<", "=", ".", ":", "|", ",", ";",
];

/// Where a tag may begin.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Tag {
    Comment,
    Block,
    Output,
}

struct Lexer<'a> {
    rest: &'a str,
    line: u32,
    /// Whether what comes next begins a line, for blanks before a tag.
    is_line_start: bool,
    tokens: Vec<(Token, u32)>,
}

/// All tokens, each with its line; the last one is [`Token::End`].
pub(crate) fn tokenize(source: &str) -> Result<Vec<(Token, u32)>, TemplateError> {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let rest = source.strip_suffix('\n').unwrap_or(&source);
    let mut lexer = Lexer { rest, line: 1, is_line_start: true, tokens: Vec::new() };
    while !lexer.rest.is_empty() {
        lexer.data()?;
    }
    lexer.push(Token::End);
    Ok(lexer.tokens)
}

impl<'a> Lexer<'a> {
    fn push(&mut self, token: Token) {
        self.tokens.push((token, self.line));
    }

    fn advance(&mut self, n: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at_checked(n).unwrap_or((self.rest, ""));
        let lines = taken.bytes().filter(|&byte| byte == b'\n').count();
        self.line = self.line.saturating_add(u32::try_from(lines).unwrap_or(u32::MAX));
        self.rest = rest;
        taken
    }

    fn error<T>(&self, message: impl Into<String>) -> Result<T, TemplateError> {
        Err(TemplateError::syntax(message, self.line))
    }

    /// Text up to the next tag, and that tag.
    fn data(&mut self) -> Result<(), TemplateError> {
        let tags = self.rest.match_indices('{').find_map(|(at, _)| {
            let tag = match self.rest.as_bytes().get(at + 1)? {
                b'%' => Tag::Block,
                b'{' => Tag::Output,
                b'#' => Tag::Comment,
                _ => return None,
            };
            Some((at, tag))
        });
        let Some((at, tag)) = tags else {
            let rest = self.advance(self.rest.len());
            self.push_data(rest);
            return Ok(());
        };
        let sign = self.rest.as_bytes().get(at + 2).copied();
        let mut text = self.rest.get(..at).unwrap_or_default();
        if sign == Some(b'-') {
            text = text.trim_end_matches(is_space);
        } else if sign != Some(b'+') && tag != Tag::Output {
            let line_start = text.rfind('\n').map_or(0, |at| at + 1);
            let (before, blanks) = text.split_at(line_start);
            if (0 < line_start || self.is_line_start) && blanks.chars().all(is_space) {
                text = before;
            }
        }
        self.push_data(text);
        let signed = usize::from(matches!(sign, Some(b'-' | b'+')));
        self.advance(
            at + 2 + if tag == Tag::Output { usize::from(sign == Some(b'-')) } else { signed },
        );
        match tag {
            Tag::Comment => {
                let Some(end) = self.rest.find("#}") else {
                    return self.error("a comment is not closed; write `#}`");
                };
                let sign = end.checked_sub(1).and_then(|at| self.rest.as_bytes().get(at)).copied();
                self.advance(end + 2);
                self.after_tag(sign, true);
            }
            Tag::Block if self.raw_begins() => self.raw()?,
            Tag::Block => self.code("%}", Token::BlockBegin, Token::BlockEnd, true)?,
            Tag::Output => self.code("}}", Token::OutputBegin, Token::OutputEnd, false)?,
        }
        Ok(())
    }

    fn push_data(&mut self, text: &str) {
        if !text.is_empty() {
            self.push(Token::Data(text.to_owned()));
        }
    }

    /// Takes what the end of a tag strips; `trims`: also a line end that follows at once.
    fn after_tag(&mut self, sign: Option<u8>, trims: bool) {
        let n = match sign {
            Some(b'-') => self.rest.len() - self.rest.trim_start_matches(is_space).len(),
            Some(b'+') => 0,
            _ => usize::from(trims && self.rest.starts_with('\n')),
        };
        let taken = self.advance(n);
        self.is_line_start = taken.ends_with('\n');
    }

    fn raw_begins(&self) -> bool {
        let word = self.rest.trim_start_matches(is_space).strip_prefix("raw");
        let after = word.map(|rest| rest.trim_start_matches(is_space));
        after.is_some_and(|rest| rest.starts_with("%}") || rest.starts_with("-%}"))
    }

    fn raw(&mut self) -> Result<(), TemplateError> {
        let Some(begin) = self.rest.find("%}") else { return self.error("`raw` is not closed") };
        let sign = begin.checked_sub(1).and_then(|at| self.rest.as_bytes().get(at)).copied();
        self.advance(begin + 2);
        self.after_tag(sign, false);
        let mut from = 0;
        while let Some(at) = self.rest.get(from..).and_then(|rest| rest.find("{%")) {
            let at = from + at;
            from = at + 2;
            let inside = self.rest.get(from..).unwrap_or_default();
            let inner = inside.strip_prefix(['-', '+']).unwrap_or(inside);
            let Some(after) = inner.trim_start_matches(is_space).strip_prefix("endraw") else {
                continue;
            };
            let after = after.trim_start_matches(is_space);
            let signed = after.strip_prefix(['-', '+']);
            let Some(rest) = signed.unwrap_or(after).strip_prefix("%}") else { continue };
            let mut text = self.rest.get(..at).unwrap_or_default();
            if inside.starts_with('-') {
                text = text.trim_end_matches(is_space);
            } else if !inside.starts_with('+') {
                let line_start = text.rfind('\n').map_or(0, |at| at + 1);
                let (before, blanks) = text.split_at(line_start);
                if 0 < line_start && blanks.chars().all(is_space) {
                    text = before;
                }
            }
            self.push_data(text);
            let sign = signed.and(after.as_bytes().first().copied());
            self.advance(self.rest.len() - rest.len());
            self.after_tag(sign, true);
            return Ok(());
        }
        self.error("`raw` has no `endraw`")
    }

    /// The tokens of a tag up to its end, which does not count inside brackets. `trims`: see
    /// [`Self::after_tag`].
    fn code(
        &mut self,
        end: &str,
        first: Token,
        last: Token,
        trims: bool,
    ) -> Result<(), TemplateError> {
        self.push(first);
        let mut brackets = Vec::new();
        loop {
            let blanks = self.rest.len() - self.rest.trim_start_matches(is_space).len();
            self.advance(blanks);
            if brackets.is_empty() {
                let signed = self.rest.strip_prefix(['-', '+']).filter(|it| it.starts_with(end));
                let sign = signed.and(self.rest.as_bytes().first().copied());
                let ends = sign == Some(b'-') || sign == Some(b'+') && end == "%}";
                if ends || self.rest.starts_with(end) {
                    self.push(last);
                    self.advance(end.len() + usize::from(ends));
                    self.after_tag(sign.filter(|_| ends), trims);
                    return Ok(());
                }
            }
            let Some(c) = self.rest.chars().next() else {
                return self.error(format!("a tag is not closed; write `{end}`"));
            };
            if c == '"' || c == '\'' {
                self.string(c)?;
            } else if c.is_ascii_digit() {
                self.number()?;
            } else if c == '_' || c.is_alphabetic() {
                let is_part = |c: char| c == '_' || c.is_alphanumeric();
                let rest = self.rest.trim_start_matches(is_part);
                let name = self.advance(self.rest.len() - rest.len());
                self.push(Token::Name(name.to_owned()));
            } else {
                let Some(mark) = MARKS.into_iter().find(|mark| self.rest.starts_with(mark)) else {
                    return self.error(format!("{c:?} has no meaning in a tag"));
                };
                match mark {
                    "(" => brackets.push(")"),
                    "[" => brackets.push("]"),
                    "{" => brackets.push("}"),
                    ")" | "]" | "}" if brackets.pop() != Some(mark) => {
                        return self.error(format!("`{mark}` closes no bracket"));
                    }
                    _ => {}
                }
                self.push(Token::Mark(mark));
                self.advance(mark.len());
            }
        }
    }

    fn string(&mut self, quote: char) -> Result<(), TemplateError> {
        let mut text = String::new();
        let mut chars = self.rest.char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            if c == quote {
                self.push(Token::Text(text));
                self.advance(at + 1);
                return Ok(());
            }
            if c != '\\' {
                text.push(c);
                continue;
            }
            let Some((_, escaped)) = chars.next() else { break };
            let mut number = |n, radix| {
                let digits: String = chars.by_ref().take(n).map(|(_, c)| c).collect();
                let value = u32::from_str_radix(&digits, radix).ok().filter(|_| digits.len() == n);
                value.and_then(char::from_u32)
            };
            let new = match escaped {
                'n' => Some('\n'),
                't' => Some('\t'),
                'r' => Some('\r'),
                'a' => Some('\u{7}'),
                'b' => Some('\u{8}'),
                'f' => Some('\u{c}'),
                'v' => Some('\u{b}'),
                '0' => Some('\0'),
                '\n' => continue,
                '\\' | '\'' | '"' => Some(escaped),
                'x' => number(2, 16),
                'u' => number(4, 16),
                'U' => number(8, 16),
                other => {
                    text.push('\\');
                    Some(other)
                }
            };
            let Some(new) = new else { return self.error("an escape in a string is no character") };
            text.push(new);
        }
        self.error("a string is not closed")
    }

    fn number(&mut self) -> Result<(), TemplateError> {
        let digits = |text: &str| {
            text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '_').len()
        };
        let after_dot = matches!(self.tokens.last(), Some((Token::Mark("."), _)));
        let mut length = digits(self.rest);
        let mut is_float = false;
        let remainder = |length: usize| self.rest.get(length..).unwrap_or_default();
        if !after_dot {
            let fraction = remainder(length).strip_prefix('.').map_or(0, digits);
            if 0 < fraction {
                length += 1 + fraction;
                is_float = true;
            }
            if let Some(exponent) = remainder(length).strip_prefix(['e', 'E']) {
                let sign = usize::from(exponent.starts_with(['+', '-']));
                let n = digits(exponent.get(sign..).unwrap_or_default());
                if 0 < n {
                    length += 1 + sign + n;
                    is_float = true;
                }
            }
        }
        let text = self.advance(length).replace('_', "");
        let token = if is_float {
            text.parse().ok().map(Token::Float)
        } else {
            text.parse().ok().map(Token::Int)
        };
        let Some(token) = token else { return self.error(format!("{text} is no number")) };
        self.push(token);
        Ok(())
    }
}
