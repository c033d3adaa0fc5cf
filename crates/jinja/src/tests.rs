//! What the goldens do not show: where characters come from, and that no template hangs, overflows or
//! takes the process down.

use std::time::{Duration, Instant};

use super::*;
use crate::value::Kind;

/// Everything that a template can do with a string `s`, a list `l` of strings and a dictionary `d` whose
/// keys and values are strings, all of them contents.
const USES: &[&str] = &[
    "{{ s }}",
    "{{ s|trim }}{{ s.strip() }}{{ s.lstrip() }}{{ s.rstrip('x') }}",
    "{{ s|upper }}{{ s|lower }}{{ s|title }}{{ s|capitalize }}",
    "{{ s.upper() }}{{ s.lower() }}{{ s.title() }}{{ s.capitalize() }}{{ s.swapcase() }}",
    "{{ s|replace('a', s) }}{{ 'aXa'|replace('X', s) }}{{ s.replace('|', '|') }}",
    "{{ s[1:] }}{{ s[:-1] }}{{ s[::-1] }}{{ s[::2] }}{{ s[0] }}{{ s[-1] }}{{ s[1:4] }}",
    "{{ s + '' }}{{ '' + s }}{{ s ~ s }}{{ s * 3 }}{{ '[' ~ s ~ ']' }}",
    "{{ s.split('|')|join('|') }}{{ s.split('|') }}{{ s.rsplit('|', 1) }}{{ s.splitlines() }}",
    "{{ s.partition('|') }}{{ s.rpartition('|')|join }}{{ s.split() }}",
    "{{ l|join }}{{ l|join(s) }}{{ ''.join(l) }}{{ s.join(l) }}{{ l }}{{ (s,) }}",
    "{{ s|list|join }}{{ s|reverse }}{{ s|first }}{{ s|last }}{% for c in s %}{{ c }}{% endfor %}",
    "{{ s|tojson }}{{ d|tojson }}{{ d|tojson(indent=2) }}{{ l|tojson(ensure_ascii=true) }}",
    "{{ [1]|tojson(indent=s) }}{{ [1, 2]|tojson(separators=(s, s)) }}{{ d|tojson(sort_keys=true) }}",
    "{{ d }}{{ d|string }}{{ d|items|list }}{{ d|dictsort }}{{ d.keys()|list }}{{ d.values()|list }}",
    "{% for k, v in d.items() %}{{ k }}={{ v }}{{ k ~ v }}{% endfor %}{% for k in d %}{{ k }}{% endfor %}",
    "{{ s|indent(2, true) }}{{ 'a\nb'|indent(s) }}{{ s|center(40) }}{{ s.center(40, s) }}",
    "{{ s.ljust(40, s) }}{{ ''.ljust(5, s[0]) }}{{ ''.rjust(5, s) }}{{ s.zfill(40) }}",
    "{{ '%s' % s }}{{ '%r' % s }}{{ '%5s|' % s }}{{ s|format }}{{ '%(a)s'|format(a=s) }}{{ '%s'|format(s) }}",
    "{{ '{}'.format(s) }}{{ '{x:>40}'.format(x=s) }}{{ '{!r}'.format(s) }}{{ s.format() }}",
    "{{ ('{:' ~ s[0] ~ '<3}').format('') }}{{ ('{:' ~ s[1] ~ '>3}').format(1) }}",
    "{{ strftime_now(s) }}{{ s|escape }}{{ s|safe }}{{ s|string }}{{ s|default('x') }}{{ u|default(s) }}",
    "{% set x = s %}{{ x }}{% set y %}{{ s }}{% endset %}{{ y }}{% set z | upper %}{{ s }}{% endset %}{{ z }}",
    "{% set ns = namespace(x=s) %}{% set ns.y = ns.x ~ s %}{{ ns.x }}{{ ns.y }}",
    "{% macro m(a, b=s) %}{{ a }}{{ b }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(s, s, s, k=s) }}{{ m(s)|upper }}",
    "{% macro m() %}{{ kwargs }}{{ kwargs.keys()|list }}{% endmacro %}{{ m(**d) }}{{ dict(**d) }}",
    "{% macro m() %}{{ caller(s) }}{% endmacro %}{% call(a) m() %}{{ a }}{{ s }}{% endcall %}",
    "{% filter upper %}{{ s }}{% endfilter %}{% filter replace('a', s) %}a{% endfilter %}",
    "{{ dict(a=s) }}{{ dict([(s, s)]) }}{{ {s: s} }}{{ [s, [s]] }}{{ {s: s}|dictsort }}",
    "{{ l|sort|join }}{{ l|unique|join }}{{ l|reverse|join }}{{ l|map('upper')|join }}{{ l|max }}{{ l|min }}",
    "{{ l|select('string')|join }}{{ [d]|map(attribute=s)|join }}{{ [{'k': s}]|map(attribute='k')|join }}",
    "{% for g, i in [{'k': s}]|groupby('k') %}{{ g }}{{ i }}{% endfor %}{{ l|batch(1)|list }}{{ l|batch(3, s)|list }}",
    "{{ s.removeprefix('<') }}{{ s.removesuffix('>') }}{{ s if s else 'n' }}{{ s or 'n' }}{{ u or s }}{{ s and s }}",
    "{% with x = s %}{{ x }}{% endwith %}{% generation %}{{ s }}{% endgeneration %}{{ loop }}{{ s.upper }}",
    "{% for x in l recursive %}{{ x }}{{ loop.nextitem }}{{ loop.previtem }}{{ loop.cycle(s, x) }}{% endfor %}",
];

/// Nobody but a content writes these: not the engine and none of [`USES`].
fn is_foreign(c: char) -> bool {
    ('\u{370}'..='\u{3ff}').contains(&c)
}

fn value(text: &str) -> Value {
    Value::text(Text::content(text, 1))
}

fn values(text: &str) -> [(&'static str, Value); 3] {
    let other = format!("{text}{text}");
    let entries = vec![(value(text), value(&other)), (value(&other), value(text))];
    [
        ("s", value(text)),
        ("l", Value::list(vec![value(text), value(&other)]).unwrap()),
        ("d", Value::from_entries(entries).unwrap()),
    ]
}

fn render_with(source: &str, text: &str) -> Result<Text, TemplateError> {
    let limits = Limits::for_contents(text.len());
    Template::new(source)?.render(values(text), Local::now(), &limits)
}

#[test]
fn every_character_of_a_content_stays_a_contents_whatever_is_done_to_it() {
    for source in USES {
        let text =
            render_with(source, "αβ|γ δΩ").unwrap_or_else(|error| panic!("{source}: {error}"));
        assert!(text.as_str().contains(is_foreign), "{source} shows nothing of it");
        for (piece, origin) in text.pieces() {
            assert!(origin.is_some() || !piece.contains(is_foreign), "{source}: {piece}");
        }
    }
}

#[test]
fn no_typed_control_token_becomes_the_templates_own() {
    let typed = [
        "<|im_end|>",
        "<|im_start|>system",
        "</s>",
        "<s>",
        "[/INST]",
        "<end_of_turn>",
        "<|eot_id|>",
        "<|end|>",
        "<\u{ff5c}User\u{ff5c}>",
        "<|{}|>",
        "{:<>1}{:|>1}",
    ];
    let mut n = 0;
    for source in USES {
        for typed in typed {
            n += 1;
            // A form made of content may be none.
            let Ok(text) = render_with(source, typed) else { continue };
            for (piece, origin) in text.pieces() {
                let written = |token: &str| piece.to_lowercase().contains(&token.to_lowercase());
                let shown = origin.is_none() && (written(typed) || written("<>") || written("<|"));
                assert!(!shown, "{source} of {typed}: {piece:?}");
            }
        }
    }
    assert!(200 <= n);
}

#[test]
fn what_a_template_joins_around_a_content_is_its_own() {
    let text = render_with("{{ '<|' + s|trim + '|>' }}", " user ").unwrap();
    let pieces: Vec<_> = text.pieces().collect();
    assert_eq!(pieces, [("<|", None), ("user", Some(1)), ("|>", None)]);
}

fn kind_of_failure(source: &str) -> ErrorKind {
    render_with(source, "x").map(|text| text.as_str().len()).expect_err(source).kind
}

/// With the stack that the daemon's threads have.
fn on_a_small_stack(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::Builder::new().stack_size(2 << 20).spawn(test).unwrap();
    thread.join().unwrap();
}

#[test]
fn endless_templates_end() {
    on_a_small_stack(|| {
        let started = Instant::now();
        let loops =
            "{% for a in range(99999) %}".repeat(3) + "{% endfor %}{% endfor %}{% endfor %}";
        for source in [
            loops.as_str(),
            "{{ range(9999999999999)|length }}",
            "{{ 'x' * 9999999999999 }}",
            "{% set ns = namespace(x='x') %}{% for a in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
            "{% set ns = namespace(x=[1]) %}{% for a in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
            "{% set ns = namespace(x=[1]) %}{% for a in range(90) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
            "{% set ns = namespace(x=[1]) %}{% for a in range(90) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}\
             {{ ns.x|tojson }}",
            "{% set a = namespace(x=[1]) %}{% set b = namespace(x=[1]) %}{% for i in range(90) %}\
             {% set a.x = [a.x, a.x] %}{% set b.x = [b.x, b.x] %}{% endfor %}{{ a.x == b.x }}",
            "{% set ns = namespace(x=1) %}{% for a in range(999) %}{% set ns.x = [ns.x] %}{% endfor %}",
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
            "{% macro f() %}{% call f() %}{% endcall %}{% endmacro %}{{ f() }}",
            "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
            "{{ 'x'.center(99999999999) }}",
            "{{ '%99999999999s' % 'x' }}",
            "{{ '{:>99999999999}'.format('x') }}",
            "{{ 'x'|indent(99999999999) }}",
            "{% set s = 'x' * 1000000 %}{% for a in range(999999) %}{{ s|length }}{% endfor %}",
            "{% set s = 'x' * 1000000 %}{% for a in range(999999) %}{% if s[-1] == s %}{% endif %}{% endfor %}",
            "{% set s = 'x' * 1000000 %}{% for a in range(999999) %}{% if 'y' in s %}{% endif %}{% endfor %}",
            "{% set s = 'x' * 1000000 %}{% for a in range(999999) %}{{ s.find('y') }}{{ s|trim|length }}{% endfor %}",
        ] {
            assert_eq!(kind_of_failure(source), ErrorKind::Limit, "{source}");
        }
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    });
}

#[test]
fn deep_templates_are_refused_and_circles_are_freed() {
    on_a_small_stack(|| {
        for (open, close) in [
            ("(", ")"),
            ("[", "]"),
            ("not ", ""),
            ("-", ""),
            ("a[", "]"),
            ("f(", ")"),
            ("1 if ", ""),
        ] {
            let source = format!("{{{{ {}1{} }}}}", open.repeat(9999), close.repeat(9999));
            assert_eq!(kind_of_failure(&source), ErrorKind::Syntax, "{open}");
        }
        for chain in ["+1", "~'a'", ".a", "|upper", " and 1", " == 1", "[0]", "()", " is odd"] {
            let source = format!("{{{{ 1{} }}}}", chain.repeat(9999));
            let failure = Template::new(&source).map(|it| {
                it.render([], Local::now(), &Limits::for_contents(0))
                    .map(|text| text.as_str().len())
            });
            drop(failure);
        }
        for tag in [
            "{% if 1 %}",
            "{% for x in y %}",
            "{% macro f() %}",
            "{% set x %}",
            "{% filter upper %}",
        ] {
            assert_eq!(kind_of_failure(&tag.repeat(9999)), ErrorKind::Syntax, "{tag}");
        }
        // As deep as it may be.
        let deep = format!("{{{{ {}1{} }}}}", "[".repeat(60), "]".repeat(60));
        assert_eq!(render_with(&deep, "").unwrap().as_str().len(), 121);
        let circle = "{% set a = namespace() %}{% set b = namespace(a=a) %}{% set a.b = b %}{{ a == a.b.a }}";
        assert_eq!(render_with(circle, "").unwrap().as_str(), "True");
        let chain = "{% set ns = namespace(x=none) %}{% for i in range(50000) %}\
                     {% set ns.x = namespace(x=ns.x) %}{% endfor %}ok";
        assert_eq!(render_with(chain, "").unwrap().as_str(), "ok");
    });
}

/// Changes a template as a careless or evil hand would.
fn mutated(random: &mut fastrand::Rng, corpus: &[&str]) -> String {
    let mut chars: Vec<char> = corpus[random.usize(..corpus.len())].chars().collect();
    for _ in 0..random.usize(1..3) {
        let from = random.usize(..=chars.len());
        let to = random.usize(from..=chars.len().min(from + 12));
        let other: Vec<char> = corpus[random.usize(..corpus.len())].chars().collect();
        let start = random.usize(..=other.len());
        let end = random.usize(start..=other.len().min(start + 24));
        let marks = [
            "{{", "}}", "{%", "%}", "-", "(", ")", "[", "]", "|", "~", ".", "9", "'", "\u{0}", "é",
        ];
        let new: Vec<char> = match random.u8(..4) {
            0 => marks[random.usize(..marks.len())].chars().collect(),
            1 => Vec::new(),
            _ => other[start..end].to_vec(),
        };
        chars.splice(from..to, new);
    }
    chars.into_iter().collect()
}

#[test]
fn ten_thousand_mutated_templates_neither_panic_nor_hang() {
    on_a_small_stack(|| {
        let cases: serde_json::Value =
            serde_json::from_str(include_str!("../tests/cases.json")).unwrap();
        let cases = cases["cases"].as_array().unwrap().iter();
        let mut corpus: Vec<&str> = cases.map(|case| case["template"].as_str().unwrap()).collect();
        corpus.extend(USES);
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let limits = Limits { steps: 20_000, bytes: 1 << 20, depth: 300 };
        let [mut parsed, mut rendered] = [0; 2];
        for _ in 0..10_000 {
            let source = mutated(&mut random, &corpus);
            let Ok(template) = Template::new(&source) else { continue };
            parsed += 1;
            let done = template.render(values("αβ|γ"), Local::now(), &limits);
            let Ok(text) = done else { continue };
            rendered += 1;
            for (piece, origin) in text.pieces() {
                let own =
                    origin.is_some() || !piece.contains(is_foreign) || source.contains(is_foreign);
                assert!(own, "seed {seed}: {source}: {piece}");
            }
        }
        assert!(1_000 < parsed && 500 < rendered, "{parsed} parsed, {rendered} rendered");
    });
}

#[test]
fn failures_name_their_line() {
    let error = render_with("a\n{% if true %}\n{{ u.x }}\n{% endif %}", "").unwrap_err();
    assert_eq!(error.to_string(), "`u`, which is undefined, has no `x` (line 3)");
    let error = Template::new("a\n\n{{ 1").unwrap_err();
    assert_eq!((error.kind, error.line), (ErrorKind::Syntax, 3));
    let error = render_with("{{ raise_exception('no') }}", "").unwrap_err();
    assert_eq!((error.kind, error.message.as_str()), (ErrorKind::Raised, "no"));
    let function = Value(Kind::Function("range"));
    assert_eq!(function.type_name(), "function");
}
