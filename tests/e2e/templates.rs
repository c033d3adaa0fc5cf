//! Chat templates that do not work: with one agent, or at all. The daemon serves whom it can, and every
//! place says what to do.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use files::write_atomic;
use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use testkit::client::{request, send};

use crate::check::check;
use crate::daemon::Daemon;
use crate::scratch::Scratch;

/// The nano model's words in the constructs of larger models' templates. It refuses one system text.
const TEMPLATE: &str = "\
{%- macro turn(role, content) -%}
    {{ '<|' ~ role ~ '|>' ~ content ~ '<|end|>' }}
{%- endmacro -%}
{%- if tools is iterable and tools | length > 0 %}{{ tools | tojson }}{% endif -%}
{%- for message in messages -%}
    {%- if message.role == 'system' and 'pirate' in message.content -%}
        {{ raise_exception('no pirates here') }}
    {%- elif message.role == 'system' -%}
        {{ turn('system', message.content | trim) }}
    {%- elif message.role == 'user' -%}
        {{ turn('user', message.content) }}
    {%- else -%}
        {{ turn('assistant', message.content.split('</think>')[-1].lstrip()) }}
    {%- endif -%}
    {%- if 'pirate' in message.content -%}{{ raise_exception('no pirates here') }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}
";

/// An agent of the same model whose system text the template refuses.
const OTHER: &str = "\
model: agents/nano/model.gguf
prompts: agents/nano/prompts.yaml
aspects: [readability]
system: You are a pirate.
";

fn write(path: &Path, text: &str) {
    write_atomic(path, |file| file.write_all(text.as_bytes())).unwrap();
}

/// The embedded agent and [`OTHER`], with this template for both.
fn scratch(template: &str) -> Scratch {
    let scratch = Scratch::new();
    let root = scratch.root();
    write(&root.join("own.jinja"), template);
    let settings = fs::read_to_string(root.join("reflectd.yaml")).unwrap();
    let settings = settings.replace("engine: {", "engine: { chat_template: own.jinja,");
    assert!(settings.contains("own.jinja"));
    write(&root.join("reflectd.yaml"), &settings);
    write(&root.join("agents/other.yaml"), OTHER);
    scratch
}

async fn chat(daemon: &Daemon, agent: &str) -> (StatusCode, Value) {
    let body = json!({"model": agent, "max_tokens": 4, "reflectd": {"mode": "off"},
                      "messages": [{"role": "user", "content": "What is 3 + 4?"}]});
    let request = request(Method::POST, "/v1/chat/completions", body.to_string());
    let reply = send(&daemon.scratch().socket(), request).await.unwrap().whole().await;
    (reply.status, reply.json())
}

#[tokio::test]
async fn a_template_that_refuses_one_agent_leaves_the_others_served() {
    let scratch = scratch(TEMPLATE);
    let (code, checked) = check(scratch.root()).await;
    assert_eq!(code, Some(78), "{checked}");
    let problems = checked["problems"].as_array().unwrap();
    assert_eq!(problems.len(), 1, "{checked}");
    assert_eq!(problems[0]["file"], "agents/other.yaml");
    let message = problems[0]["message"].as_str().unwrap();
    assert!(message.contains("refuses the conversation: no pirates here"), "{message}");

    let daemon = Daemon::start(scratch).await;
    let (status, reply) = chat(&daemon, "nano").await;
    assert_eq!(status, StatusCode::OK, "{reply}");
    let (status, reply) = chat(&daemon, "other").await;
    assert_eq!((status, &reply["error"]["param"]), (StatusCode::BAD_REQUEST, &json!("messages")));
    assert!(reply["error"]["message"].as_str().unwrap().contains("no pirates here"), "{reply}");
    let health = daemon.get("/health").await;
    assert_eq!(health["config"]["state"], "ok");
    assert_eq!(health["config"]["problems"], checked["problems"]);
    daemon.stop().await;
}

#[tokio::test]
async fn a_template_that_cannot_be_used_does_not_end_the_daemon() {
    let scratch = scratch("{{ messages[0].content.nope.nope }}");
    let (code, checked) = check(scratch.root()).await;
    assert_eq!((code, checked["problems"].as_array().unwrap().len()), (Some(78), 2), "{checked}");
    let daemon = Daemon::start(scratch).await;
    let (status, reply) = chat(&daemon, "nano").await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(reply["error"]["code"], "chat_template");
    let message = reply["error"]["message"].as_str().unwrap();
    assert!(message.contains("(line 1); name a file") && message.contains("engine.chat_template"));
    daemon.stop().await;
}
