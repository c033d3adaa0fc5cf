//! The project's reflection templates: what the judge and the refining policy are asked. Rendered with
//! values that are plain text, never templates. Used by `reflect` and `config`.

use std::collections::{BTreeMap, BTreeSet};

use minijinja::value::Value;
use minijinja::{Environment, Error, UndefinedBehavior, context};
use regex::Regex;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::neutral::{self, neutral};
use crate::{Message, PromptError, Role};

#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
fn in_words(error: Error) -> PromptError {
    PromptError::Invalid(error.to_string())
}

/// The project's reflection templates (`prompts/reflect.yaml`, or an agent's own file): each is a
/// short conversation whose contents are minijinja templates.
#[derive(Clone, Debug)]
pub struct PromptSet {
    labels: [String; 3],
    /// Holds each content under `name.index`.
    environment: Environment<'static>,
    roles: BTreeMap<String, Vec<Role>>,
    /// What an answer looks like, where the judge knows one form only.
    form: Option<Regex>,
    /// Hash of all that the judge is asked with, but for the aspect.
    version: String,
    /// The first label stands for level +1 and the last one for -1.
    is_reversed: bool,
}

/// What a critique or refinement template may show of one aspect.
#[derive(Clone, Debug, Serialize)]
pub struct AspectView<'a> {
    /// Name.
    pub name: &'a str,
    /// Description.
    pub description: &'a str,
    /// Levels -1, 0, +1.
    pub levels: &'a [String; 3],
}

impl AspectView<'_> {
    fn to_value(&self) -> Value {
        context! {
            name => self.name,
            description => self.description,
            levels => self.levels.iter().map(Value::from).collect::<Vec<_>>(),
        }
    }
}

pub(crate) const NAMES: [&str; 3] = ["assess", "critique", "refine"];
/// The one that an agent may do without.
const CHOOSE: &str = "choose";

impl PromptSet {
    /// Compiles the templates from YAML text that `config` has read into strings:
    /// name -> list of (role, template). Names: `assess`, `critique`, `refine`, and `choose` where
    /// the judge chooses aspects. Each is rendered once, so that a misspelt variable is a problem
    /// at load and not in the night.
    pub fn new(
        labels: [String; 3],
        templates: BTreeMap<String, Vec<Message>>,
    ) -> Result<Self, PromptError> {
        if labels.iter().any(String::is_empty) || labels.iter().collect::<BTreeSet<_>>().len() < 3 {
            return Err(PromptError::Invalid("labels must be three different texts".into()));
        }
        if !templates.keys().map(String::as_str).filter(|name| *name != CHOOSE).eq(NAMES) {
            let names = NAMES.join(", ");
            return Err(PromptError::Invalid(format!(
                "templates must be {names} and, if wanted, {CHOOSE}"
            )));
        }
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.add_filter("quote", quote);
        let mut roles = BTreeMap::new();
        let version = version(&labels, &templates);
        for (name, turns) in templates {
            if turns.last().is_none_or(|last| last.role != Role::User) {
                return Err(PromptError::Invalid(format!(
                    "{name} must end with a turn of the user"
                )));
            }
            roles.insert(name.clone(), turns.iter().map(|turn| turn.role).collect());
            for (index, turn) in turns.into_iter().enumerate() {
                environment
                    .add_template_owned(format!("{name}.{index}"), turn.content)
                    .map_err(in_words)?;
            }
        }
        let (form, is_reversed) = (None, false);
        let set = Self { labels, environment, roles, form, version, is_reversed };
        set.try_out()?;
        Ok(set)
    }

    /// Says what an answer looks like. For judges that were trained on answers of one form and have no
    /// means to tell an answer from what is said about it: see [`PromptSet::readings`].
    pub fn set_form(&mut self, form: &str) -> Result<(), PromptError> {
        self.form =
            Some(Regex::new(form).map_err(|error| PromptError::Invalid(error.to_string()))?);
        self.version = files::hex(&Sha256::digest(format!("{}{form}", self.version)));
        Ok(())
    }

    /// Names what the judge is asked with, but for the aspect: templates, labels, form, and how
    /// answers are made harmless.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The same with the labels in the opposite order; the caller turns the aspects' levels round.
    /// Shows how much the judge likes a label for its place.
    #[must_use]
    pub fn reversed(&self) -> Self {
        Self { is_reversed: !self.is_reversed, ..self.clone() }
    }

    /// An answer as the judge reads it: as it stands, and where there is more than an answer of the
    /// form, also the first part that is one alone. The least favourable reading counts, so that what
    /// was added to an answer to speak to the judge can only harm it.
    pub fn readings(&self, response: &str) -> Vec<String> {
        let whole = neutral(response).into_owned();
        let Some(form) = &self.form else { return vec![whole] };
        let formed = form.find(&whole).map_or("", |found| found.as_str());
        if formed == whole {
            return vec![whole];
        }
        let formed = formed.to_owned();
        vec![whole, formed]
    }

    /// Text of the three level labels; each must be one token after the rendered `assess` prompt.
    pub fn labels(&self) -> &[String; 3] {
        &self.labels
    }

    /// Asks for one level. Question and response come first, the aspect last, so that the KV of
    /// the former is shared by all aspects.
    pub fn assess(
        &self,
        question: &str,
        response: &str,
        reference: Option<&str>,
        aspect: &AspectView<'_>,
    ) -> Result<Vec<Message>, PromptError> {
        let aspect = aspect.to_value();
        let (question, response) = (neutral(question), neutral(response));
        let best = &self.labels[if self.is_reversed { 0 } else { 2 }];
        self.render("assess", &context! { question, response, reference, aspect, best })
    }

    /// Whether there is a template for choosing aspects.
    pub fn can_choose(&self) -> bool {
        self.roles.contains_key(CHOOSE)
    }

    /// Asks how much an aspect matters for a request, answered with a label like a level. The
    /// request comes first, so that its KV is shared by all aspects.
    pub fn choose(
        &self,
        question: &str,
        aspect: &AspectView<'_>,
    ) -> Result<Vec<Message>, PromptError> {
        let aspect = aspect.to_value();
        self.render(CHOOSE, &context! { question, aspect })
    }

    /// Asks what falls short, for the aspects that did.
    pub fn critique(
        &self,
        question: &str,
        response: &str,
        reference: Option<&str>,
        aspects: &[AspectView<'_>],
    ) -> Result<Vec<Message>, PromptError> {
        let aspects: Vec<Value> = aspects.iter().map(AspectView::to_value).collect();
        let (question, response) = (neutral(question), neutral(response));
        self.render("critique", &context! { question, response, reference, aspects })
    }

    /// Asks for a better answer. No reference: it is never shown to the policy.
    pub fn refine(
        &self,
        question: &str,
        response: &str,
        critique: &str,
    ) -> Result<Vec<Message>, PromptError> {
        self.render("refine", &context! { question, response, critique })
    }

    fn render(&self, name: &str, values: &Value) -> Result<Vec<Message>, PromptError> {
        let turns = self.roles.get(name);
        let turns =
            turns.ok_or_else(|| PromptError::Invalid(format!("there is no template `{name}`")))?;
        turns
            .iter()
            .enumerate()
            .map(|(index, &role)| {
                let template = self.environment.get_template(&format!("{name}.{index}"));
                let content = template.and_then(|it| it.render(values)).map_err(in_words)?;
                Ok(Message { role, content })
            })
            .collect()
    }

    fn try_out(&self) -> Result<(), PromptError> {
        let levels = ["-1", "0", "+1"].map(String::from);
        let aspect = AspectView { name: "name", description: "description", levels: &levels };
        for reference in [None, Some("reference")] {
            self.assess("question", "response", reference, &aspect)?;
            self.critique("question", "response", reference, std::slice::from_ref(&aspect))?;
        }
        self.refine("question", "response", "critique")?;
        if self.can_choose() {
            self.choose("question", &aspect)?;
        }
        Ok(())
    }
}

fn version(labels: &[String; 3], templates: &BTreeMap<String, Vec<Message>>) -> String {
    let asked = (neutral::VERSION, labels, templates.get("assess"));
    let text = serde_json::to_vec(&asked).expect("templates are plain data");
    files::hex(&Sha256::digest(text))
}

/// Puts `> ` before every line: whatever the text says, it cannot end its own quotation.
fn quote(text: &str) -> String {
    text.split('\n').map(|line| format!("> {line}")).collect::<Vec<_>>().join("\n")
}
