//! Numbers as people and models write them. Pure and total; linear in the text.
//!
//! - A comma with exactly three digits after it groups thousands (`1,234`), any other one is a decimal
//!   comma (`2,5`, `0,125`). A point is a decimal point (`1.234`) unless points group more than
//!   once (`1.234.567`) or a decimal comma follows (`1.234,50`).
//! - Spaces (also thin ones), `'` and `_` group exactly three digits: `1 000`, `1'000.5`.
//! - `1/2` is a fraction, `3 1/2` a mixed number; `1/2/2024` is neither.
//! - `1.5e3` and `1.5 x 10^3` have exponents; digits that belong to a word (`m2`, `x_1`) or to
//!   another power are no numbers. A unit, a currency or a percent sign changes nothing.
//! - A minus counts where nothing but space or an operator stands before it.
//! - What stands in brackets right after a number is a remark: `42 (see step 3)` is 42.

use super::Finding;

/// Whether the last number of an answer is the right one.
#[derive(Debug)]
pub(super) struct Numeric {
    pub(super) expected: f64,
    pub(super) tolerance: f64,
    pub(super) marker: Option<String>,
}

impl Numeric {
    pub(super) fn check(&self, answer: &str) -> Finding {
        match last_number(answer, self.marker.as_deref()) {
            None if self.marker.as_deref().is_some_and(|marker| !answer.contains(marker)) => {
                Finding::refused("the mark before the result is missing")
            }
            None => Finding::refused("there is no number for the result"),
            Some(number) if equal(number, self.expected, self.tolerance) => Finding::passed(),
            Some(number) => Finding::refused(format!("{number} is not the right number")),
        }
    }
}

/// Equal but for the tolerance and the rounding of decimal fractions to binary ones.
pub(super) fn equal(number: f64, expected: f64, tolerance: f64) -> bool {
    (number - expected).abs() <= tolerance + 1e-12 * expected.abs()
}

/// A verifier's number from a text that is nothing but one: `$1,234.50`, `1/2`, `42 km`. `None`: the
/// text says more.
pub(super) fn only_number(text: &str) -> Option<f64> {
    let chars = plain(text.trim());
    let found = numbers(&chars);
    let [one] = found.as_slice() else { return None };
    let is_around = |c: &char| !c.is_alphanumeric();
    let before = chars.get(..one.start)?.iter().all(is_around);
    let after = chars.get(one.end..)?;
    // A unit at most.
    let unit: String = after.iter().collect();
    let is_unit = unit.split_whitespace().count() <= 1 && unit.chars().count() <= 8;
    (before && is_unit).then_some(one.value)
}

/// The last number of a text, after the last `marker` where one is given (no marker in the text:
/// no number).
pub fn last_number(text: &str, marker: Option<&str>) -> Option<f64> {
    let text = match marker {
        Some(marker) => text.rsplit_once(marker)?.1,
        None => text,
    };
    let chars = plain(text);
    let found = numbers(&chars);
    let remarks = remarks(&chars, &found);
    let counts = |number: &&Number| {
        let before = remarks.partition_point(|&(open, _)| open < number.start);
        let remark = before.checked_sub(1).and_then(|index| remarks.get(index));
        remark.is_none_or(|&(_, close)| close < number.start)
    };
    found.iter().rev().find(counts).or(found.last()).map(|number| number.value)
}

/// One number of a text and its place there, the sign left out.
#[derive(Clone, Copy, Debug)]
struct Number {
    start: usize,
    end: usize,
    value: f64,
}

/// The characters with digits of other scripts, vulgar fractions and LaTeX as plain characters.
fn plain(text: &str) -> Vec<char> {
    let text =
        [
            ("\\(", "  "),
            ("\\)", "  "),
            ("\\[", "  "),
            ("\\]", "  "),
            ("{,}", ","),
            ("\\,", "\u{2009}"),
            ("\\times", "×"),
            ("\\cdot", "·"),
            ("\\dfrac{", "\\frac{"),
            ("\\tfrac{", "\\frac{"),
        ]
        .into_iter()
        .fold(text.to_owned(), |text, (from, to)| {
            if text.contains(from) { text.replace(from, to) } else { text }
        });
    let mut chars = Vec::with_capacity(text.len());
    let mut is_raised = false;
    for (index, part) in text.split("\\frac{").enumerate() {
        // `a}{b}` becomes `a/b}`.
        let part = if index == 0 { part.to_owned() } else { part.replacen("}{", "/", 1) };
        for c in part.chars() {
            let raised = "⁰¹²³⁴⁵⁶⁷⁸⁹".chars().position(|it| it == c);
            let is_power = raised.is_some() || c == '⁻';
            if is_power && !is_raised {
                chars.push('^');
            }
            is_raised = is_power;
            match raised.and_then(digit) {
                Some(digit) => chars.push(digit),
                None if c == '⁻' => chars.push('-'),
                None => push_plain(&mut chars, c),
            }
        }
    }
    chars
}

fn push_plain(chars: &mut Vec<char>, c: char) {
    const FRACTIONS: &[(char, &str)] = &[
        ('½', "1/2"),
        ('¼', "1/4"),
        ('¾', "3/4"),
        ('⅓', "1/3"),
        ('⅔', "2/3"),
        ('⅕', "1/5"),
        ('⅛', "1/8"),
    ];
    // The first digit of blocks whose ten digits follow each other: fullwidth, Arabic-Indic (two),
    // Devanagari, Bengali, Thai.
    const ZEROS: [u32; 6] = [0xFF10, 0x0660, 0x06F0, 0x0966, 0x09E6, 0x0E50];
    if let Some((_, fraction)) = FRACTIONS.iter().find(|(it, _)| *it == c) {
        if chars.last().is_some_and(char::is_ascii_digit) {
            chars.push(' ');
        }
        chars.extend(fraction.chars());
        return;
    }
    let code = u32::from(c);
    let place = ZEROS.iter().find(|zero| (**zero..**zero + 10).contains(&code));
    let other = place.and_then(|zero| char::from_digit(code - zero, 10));
    chars.push(other.unwrap_or(match c {
        '\u{2044}' => '/',
        '\u{2212}' | '\u{2013}' => '-',
        '\u{066B}' | '\u{FF0E}' => '.',
        '\u{FF0C}' => ',',
        _ => c,
    }));
}

fn digit(value: usize) -> Option<char> {
    u32::try_from(value).ok().and_then(|value| char::from_digit(value, 10))
}

/// All numbers in their order.
fn numbers(chars: &[char]) -> Vec<Number> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < chars.len() {
        let begins = is_digit(chars, at) || chars.get(at) == Some(&'.') && is_digit(chars, at + 1);
        if !begins {
            at += 1;
            continue;
        }
        let (value, end) = number_at(chars, at);
        let before = at.checked_sub(1).and_then(|index| chars.get(index));
        let is_part = before.is_some_and(|c| c.is_alphabetic() || matches!(c, '^' | '_'))
            || before == Some(&'{') && at.checked_sub(2).and_then(|it| chars.get(it)) == Some(&'^')
            || before == Some(&'-') && at.checked_sub(2).and_then(|it| chars.get(it)) == Some(&'^');
        if let Some(value) = value.filter(|value| value.is_finite() && !is_part) {
            let value = if is_negative(chars, at) { -value } else { value };
            found.push(Number { start: at, end, value });
        }
        at = end;
    }
    found
}

fn is_digit(chars: &[char], at: usize) -> bool {
    chars.get(at).is_some_and(char::is_ascii_digit)
}

/// A minus directly before the number, or before its currency sign, that subtracts nothing.
fn is_negative(chars: &[char], at: usize) -> bool {
    let mut before = chars.get(..at).unwrap_or_default().iter().rev();
    let mut next = before.next();
    if next.is_some_and(|c| matches!(c, '$' | '€' | '£' | '¥')) {
        next = before.next();
    }
    next == Some(&'-') && before.next().is_none_or(|c| !c.is_alphanumeric() && *c != ')')
}

/// The number whose first digit or point is here, and where it ends. `None` for what looks like one
/// and is none, as a version or a date with slashes.
fn number_at(chars: &[char], start: usize) -> (Option<f64>, usize) {
    let (runs, mut end) = runs(chars, start);
    let mut value = read(&runs);
    if let Some((exponent, after)) = exponent(chars, end) {
        value = value.and_then(|value| scaled(value, exponent));
        return (value, after);
    }
    if let [(_, whole)] = runs.as_slice() {
        if whole == "10"
            && let Some((power, after)) = power(chars, end)
        {
            return (scaled(1.0, power), after);
        }
        // A mixed number: `3 1/2`.
        if chars.get(end) == Some(&' ')
            && is_digit(chars, end + 1)
            && let Some((part, after)) = fraction(chars, end + 1)
            && part < 1.0
        {
            return (value.map(|value| value + part), after);
        }
        if let Some((fraction, after)) = fraction(chars, start) {
            // A date is no fraction.
            let is_date = chars.get(after) == Some(&'/') && is_digit(chars, after + 1);
            let skip = || chars.get(after..).unwrap_or_default().iter();
            let rest = skip().take_while(|c| c.is_ascii_digit() || **c == '/').count();
            return if is_date { (None, after + rest) } else { (Some(fraction), after) };
        }
    }
    if let Some((power, after)) = times_power(chars, end) {
        value = value.and_then(|value| scaled(value, power));
        end = after;
    }
    (value, end)
}

fn scaled(value: f64, exponent: i32) -> Option<f64> {
    Some(value * 10_f64.powi(exponent)).filter(|value| value.is_finite())
}

/// Digits with what stands before each run of them: nothing, or a separator.
type Runs = Vec<(char, String)>;

/// The runs of digits that may be one number. A space joins only groups of three digits.
fn runs(chars: &[char], start: usize) -> (Runs, usize) {
    let run = |from: usize| -> String {
        chars.get(from..).unwrap_or_default().iter().take_while(|c| c.is_ascii_digit()).collect()
    };
    let mut runs = vec![('\0', run(start))];
    let mut end = start + runs.first().map_or(0, |(_, digits)| digits.len());
    while let Some(&separator) = chars.get(end) {
        let next = run(end + 1);
        let groups = is_group_mark(separator);
        let first = runs.len() == 1;
        let is_three = |digits: &str| digits.len() == 3;
        let fits = match separator {
            ',' | '.' => !next.is_empty(),
            _ if groups => {
                is_three(&next)
                    && runs.last().is_some_and(|(mark, last)| {
                        // A second kind of mark, or four digits before it, begin another number.
                        first && (1..=3).contains(&last.len())
                            || !first && *mark == separator && is_three(last)
                    })
            }
            _ => false,
        };
        if !fits {
            break;
        }
        end += 1 + next.len();
        runs.push((separator, next));
    }
    (runs, end)
}

fn is_group_mark(c: char) -> bool {
    matches!(c, ' ' | '\u{a0}' | '\u{2009}' | '\u{202f}' | '\'' | '\u{2019}' | '_')
}

/// What the runs mean together; `None`: nothing, as the version 1.2.3.
fn read(runs: &Runs) -> Option<f64> {
    let first = &runs.first()?.1;
    let rest = runs.get(1..).unwrap_or_default();
    let mark = rest.first().map_or('\0', |(mark, _)| *mark);
    let groups = rest.iter().take_while(|(it, run)| *it == mark && run.len() == 3).count();
    let may_group = (1..=3).contains(&first.len()) && !first.starts_with('0');
    let left = rest.get(groups..).unwrap_or_default();
    let is_decimal = |c: char| c == ',' || c == '.';
    let after = |left: &[(char, String)]| match left {
        [] => Some(String::new()),
        [(c, run)] if is_decimal(*c) && *c != mark => Some(format!(".{run}")),
        _ => None,
    };
    let grouped = match mark {
        ',' => may_group && 1 <= groups,
        '.' => may_group && (2 <= groups || groups == 1 && !left.is_empty()),
        _ => 1 <= groups,
    };
    if grouped && let Some(decimals) = after(left) {
        let digits: String = rest.iter().take(groups).map(|(_, run)| run.as_str()).collect();
        return format!("{first}{digits}{decimals}").parse().ok();
    }
    match rest {
        [] => first.parse().ok(),
        [(c, run)] if is_decimal(*c) => format!("0{first}.{run}").parse().ok(),
        // A list without spaces; its last number is what counts.
        _ if rest.iter().all(|(c, _)| *c == ',') => rest.last()?.1.parse().ok(),
        _ => None,
    }
}

/// `e3` right behind a number.
fn exponent(chars: &[char], at: usize) -> Option<(i32, usize)> {
    if !matches!(chars.get(at)?, 'e' | 'E') {
        return None;
    }
    let (value, end) = signed(chars, at + 1)?;
    chars.get(end).is_none_or(|c| !c.is_alphanumeric()).then_some((value, end))
}

/// `^3` or `^{3}` right behind a 10.
fn power(chars: &[char], at: usize) -> Option<(i32, usize)> {
    (chars.get(at)? == &'^').then_some(())?;
    let has_brace = chars.get(at + 1) == Some(&'{');
    let (value, end) = signed(chars, at + 1 + usize::from(has_brace))?;
    let closes = has_brace && chars.get(end) == Some(&'}');
    Some((value, end + usize::from(closes)))
}

/// `x 10^3` behind a number.
fn times_power(chars: &[char], at: usize) -> Option<(i32, usize)> {
    let skip = |mut at: usize| {
        while chars.get(at) == Some(&' ') {
            at += 1;
        }
        at
    };
    let times = skip(at);
    matches!(chars.get(times)?, 'x' | '×' | '*' | '·').then_some(())?;
    let ten = skip(times + 1);
    (chars.get(ten..ten + 2)? == ['1', '0']).then_some(())?;
    power(chars, ten + 2)
}

/// A whole number with an optional sign.
fn signed(chars: &[char], at: usize) -> Option<(i32, usize)> {
    let sign = usize::from(matches!(chars.get(at), Some('-' | '+')));
    let digits = chars.get(at + sign..)?.iter().take_while(|c| c.is_ascii_digit()).count();
    let end = at + sign + digits;
    let text: String = chars.get(at..end)?.iter().collect();
    Some((text.parse().ok()?, end))
}

/// `a/b` with whole numbers, where it stands.
fn fraction(chars: &[char], start: usize) -> Option<(f64, usize)> {
    let part = |from: usize| {
        let digits: String = chars.get(from..)?.iter().take_while(|c| c.is_ascii_digit()).collect();
        Some((digits.parse::<f64>().ok()?, from + digits.len()))
    };
    let before = start.checked_sub(1).and_then(|index| chars.get(index));
    let (above, middle) = part(start)?;
    if before == Some(&'/') || chars.get(middle)? != &'/' {
        return None;
    }
    let (below, end) = part(middle + 1)?;
    let goes_on = matches!(chars.get(end), Some('.' | ',')) && is_digit(chars, end + 1);
    (!goes_on && below != 0.0).then_some((above / below, end))
}

/// Brackets (open, close) that say something about the number before them, in their order. A word may
/// stand between, if words are in the brackets too: `42 apples (see step 3)`.
fn remarks(chars: &[char], found: &[Number]) -> Vec<(usize, usize)> {
    let mut open = Vec::new();
    let mut remarks: Vec<(usize, usize)> = Vec::new();
    let mut n_before = 0;
    for (at, c) in chars.iter().enumerate() {
        match c {
            '(' | '[' => open.push(at),
            ')' | ']' => {
                let Some(from) = open.pop() else { continue };
                if !open.is_empty() {
                    continue;
                }
                while found.get(n_before).is_some_and(|number| number.end <= from) {
                    n_before += 1;
                }
                let before = n_before.checked_sub(1).and_then(|index| found.get(index));
                let Some(number) = before else { continue };
                // What is longer than a unit is no unit.
                let between = chars.get(number.end..from).unwrap_or_default();
                if 24 < between.len() {
                    continue;
                }
                let between: String = between.iter().collect();
                let between = between.replace("**", "");
                let words = between.split_whitespace();
                let words = words.filter(|word| word.chars().any(char::is_alphabetic)).count();
                let in_words =
                    || chars.get(from..at).unwrap_or_default().iter().any(|c| c.is_alphabetic());
                let is_near = !between.contains(['.', '=', '\n', ':', '+', '(', '*', '/', '-']);
                if is_near && (words == 0 || words == 1 && in_words()) {
                    remarks.push((from, at));
                }
            }
            _ => {}
        }
    }
    remarks
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_last_number_is_found_in_many_spellings() {
        for (text, expected) in [
            ("42", Some(42.0)),
            ("The answer is 42.", Some(42.0)),
            ("about 42.", Some(42.0)),
            ("3 + 4 = 7", Some(7.0)),
            ("3 x 14 = 42", Some(42.0)),
            ("it costs $1,234,567.50 in all", Some(1_234_567.5)),
            ("$1,234.50", Some(1234.5)),
            ("-$5", Some(-5.0)),
            ("1.234,50 €", Some(1234.5)),
            ("1.234.567", Some(1_234_567.0)),
            ("1,234", Some(1234.0)),
            ("1,000kg", Some(1000.0)),
            ("1.234", Some(1.234)),
            ("2,5", Some(2.5)),
            ("0,125", Some(0.125)),
            ("3,1459", Some(3.1459)),
            ("1 000", Some(1000.0)),
            ("1 000 000,5", Some(1_000_000.5)),
            ("it is 12 345.", Some(12345.0)),
            ("2024 100", Some(100.0)),
            ("7\n100", Some(100.0)),
            ("1'000 or 1_000", Some(1000.0)),
            ("1\u{202f}000", Some(1000.0)),
            ("1\u{2009}000\u{2009}000", Some(1_000_000.0)),
            ("1{,}234", Some(1234.0)),
            ("12,3456", Some(12.3456)),
            ("1, 2, 3", Some(3.0)),
            ("1,2,3", Some(3.0)),
            ("version 1.2.3", None),
            ("-5", Some(-5.0)),
            ("-7", Some(-7.0)),
            ("= -5 degrees", Some(-5.0)),
            ("\u{2212}5", Some(-5.0)),
            ("from 10-7", Some(7.0)),
            ("10 - 7", Some(7.0)),
            ("(3)-2", Some(2.0)),
            (".5", Some(0.5)),
            ("0.50", Some(0.5)),
            ("1/2", Some(0.5)),
            ("-1/2", Some(-0.5)),
            ("3 1/2", Some(3.5)),
            ("2½ cups", Some(2.5)),
            ("½", Some(0.5)),
            ("1\u{2044}4", Some(0.25)),
            (r"\boxed{\frac{3}{4}}", Some(0.75)),
            ("on 1/2/2024", None),
            ("1/0", Some(0.0)),
            ("42/7 = 6", Some(6.0)),
            ("1.5e3 m", Some(1500.0)),
            ("1.5 x 10^3", Some(1500.0)),
            (r"1.5 \times 10^{-3}", Some(0.0015)),
            ("10⁶", Some(1e6)),
            ("10^3", Some(1000.0)),
            ("2e", Some(2.0)),
            ("The area is 42 m2", Some(42.0)),
            ("42 m^2", Some(42.0)),
            ("42 m²", Some(42.0)),
            ("50%", Some(50.0)),
            ("50 %", Some(50.0)),
            ("5kg", Some(5.0)),
            ("**12**", Some(12.0)),
            (r"\boxed{12}", Some(12.0)),
            (r"Step 3: \(x = 42\)", Some(42.0)),
            ("42 (see step 3)", Some(42.0)),
            ("42 apples (see step 3)", Some(42.0)),
            ("**42** (6 * 7)", Some(42.0)),
            ("42 [1]", Some(42.0)),
            ("the answer is (42)", Some(42.0)),
            ("f(3) = 9", Some(9.0)),
            ("Adding 3 and 4 gives the sum (which is 7)", Some(7.0)),
            ("２５", Some(25.0)),
            ("٤٢", Some(42.0)),
            ("none", None),
            ("", None),
            ("x1", None),
            ("forty-two", None),
        ] {
            assert_eq!(last_number(text, None), expected, "{text:?}");
        }
        assert_eq!(last_number(&"9".repeat(400), None), None);
    }

    #[test]
    fn only_text_after_the_last_marker_counts() {
        let marked = Numeric { expected: 7.0, tolerance: 0.0, marker: Some("####".into()) };
        assert!(marked.check("3 + 4 #### 6\nno: #### 7").passes);
        let missing = marked.check("3 + 4 = 7");
        assert_eq!(missing.reason.as_deref(), Some("the mark before the result is missing"));
        assert!(!marked.check("7 ####").passes);
    }

    #[test]
    fn a_number_may_differ_by_the_tolerance_and_by_rounding_and_no_more() {
        assert!(equal(3.25, 3.0, 0.25) && !equal(3.5, 3.0, 0.25));
        assert!(equal(0.1 + 0.2, 0.3, 0.0) && equal(1.0 / 3.0, 0.333_333_333_333_333_3, 0.0));
        assert!(!equal(4_000_000_001.0, 4_000_000_000.0, 0.0));
    }

    #[test]
    fn a_reason_names_the_answers_number_and_not_the_right_one() {
        let numeric = Numeric { expected: 42.0, tolerance: 0.0, marker: None };
        assert_eq!(numeric.check("41.5").reason.unwrap(), "41.5 is not the right number");
        assert_eq!(numeric.check("?").reason.unwrap(), "there is no number for the result");
    }

    #[test]
    fn only_a_number_is_told_from_text_with_a_number() {
        for (text, expected) in [
            (" 42 ", Some(42.0)),
            ("$1,234.50", Some(1234.5)),
            ("42 km.", Some(42.0)),
            ("-1/2", Some(-0.5)),
            ("42 is the answer", None),
            ("answer 42", None),
            ("1 or 2", None),
            ("Paris", None),
        ] {
            assert_eq!(only_number(text), expected, "{text:?}");
        }
    }

    #[test]
    fn large_texts_take_no_time_that_grows_faster_than_they_do() {
        for unit in ["1 ", "(1", "1)", "1,", "1/", "\\frac{1", "10^", "½", "([)]1", "1 000 "] {
            let text = unit.repeat((1 << 20) / unit.len());
            let began = std::time::Instant::now();
            last_number(&text, None);
            assert!(began.elapsed().as_secs() < 10, "{unit:?}");
        }
    }

    proptest! {
        #[test]
        fn a_written_number_is_read_back(number in -1_000_000_i32..1_000_000, words in "[a-z ]*") {
            let text = format!("{words} {number} apples");
            prop_assert_eq!(last_number(&text, None), Some(f64::from(number)));
        }

        #[test]
        fn a_grouped_number_is_read_back(number in 0_u32..2_000_000_000, mark in "[,_' ]") {
            let digits = number.to_string();
            let mut text = String::new();
            for (index, digit) in digits.chars().enumerate() {
                if 0 < index && (digits.len() - index).is_multiple_of(3) {
                    text += &mark;
                }
                text.push(digit);
            }
            prop_assert_eq!(last_number(&text, None), Some(f64::from(number)), "{}", text);
        }

        #[test]
        fn no_text_makes_it_panic(text in "[-0-9.,/eEx^_ '()\\[\\]{}½٤²\u{2009}\\\\]*") {
            last_number(&text, None);
            only_number(&text);
        }
    }
}
