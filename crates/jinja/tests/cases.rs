//! Small templates give what Jinja2 gives in the set-up of transformers, byte for byte, and fail where it
//! fails. `cases.json` has them with their goldens, made by `scripts/template-goldens.py cases`.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use chrono::{Local, NaiveDate, TimeZone as _};
use reflectd_jinja::{Limits, Template, Text, Value};
use serde_json::Value as Json;

fn value(json: &Json) -> Value {
    match json {
        Json::Null => Value::NONE,
        Json::Bool(value) => Value::bool(*value),
        Json::Number(number) => match number.as_i64() {
            Some(number) => Value::int(number),
            None => Value::float(number.as_f64().unwrap()),
        },
        Json::String(text) => Value::text(Text::content(text.as_str(), 0)),
        Json::Array(items) => Value::list(items.iter().map(value).collect()).unwrap(),
        Json::Object(entries) => {
            Value::map(entries.iter().map(|(key, it)| (key.as_str(), value(it)))).unwrap()
        }
    }
}

fn render(source: &str, values: &Json) -> Result<String, String> {
    let time = NaiveDate::from_ymd_opt(2026, 1, 2).unwrap().and_hms_opt(3, 4, 5).unwrap();
    let time = Local.from_local_datetime(&time).unwrap();
    let values = values.as_object().unwrap().iter().map(|(name, it)| (name.as_str(), value(it)));
    let rendered = Template::new(source)
        .and_then(|template| template.render(values, time, &Limits::for_contents(1000)));
    rendered.map(|text| text.as_str().to_owned()).map_err(|error| error.to_string())
}

#[test]
fn small_templates_give_what_jinja2_gives() {
    let file: Json = serde_json::from_str(include_str!("cases.json")).unwrap();
    let mut differences = Vec::new();
    let cases = file["cases"].as_array().unwrap();
    for case in cases {
        let source = case["template"].as_str().unwrap();
        let ours = render(source, &file["values"]);
        let same = match (case["text"].as_str(), &ours) {
            (Some(theirs), Ok(ours)) => theirs == ours,
            (theirs, ours) => theirs.is_none() && ours.is_err(),
        };
        if !same {
            let theirs = case.get("text").unwrap_or(&case["error"]);
            differences.push(format!("{source}\n theirs {theirs}\n ours   {ours:?}\n"));
        }
    }
    assert!(
        differences.is_empty(),
        "{} of {}:\n{}",
        differences.len(),
        cases.len(),
        differences.concat()
    );
}
