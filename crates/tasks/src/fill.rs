//! Templates with `{slots}`, filled with values by chance, every text once. Used by the generators.

use std::collections::HashSet;

use fastrand::Rng;

/// A word for a slot.
pub(crate) type Value = (&'static str, String);

/// A template with values in its slots; slots without a value stay.
pub(crate) fn fill(template: &str, values: &[Value]) -> String {
    let replace = |text: String, (slot, value): &Value| text.replace(&format!("{{{slot}}}"), value);
    values.iter().fold(template.to_owned(), replace)
}

/// `count` texts, none of them in `taken`, from all templates in turn in a random order, so that each is
/// used about as often. `make` gives one text of a template.
pub(crate) fn different<T>(
    rng: &mut Rng,
    n_templates: usize,
    count: usize,
    taken: &mut HashSet<String>,
    mut make: impl FnMut(&mut Rng, usize) -> (String, T),
) -> Vec<(String, T)> {
    /// A template whose values are used up is passed over.
    const TRIES: usize = 50;
    let mut order: Vec<usize> = (0..n_templates).collect();
    rng.shuffle(&mut order);
    let mut found = Vec::with_capacity(count);
    let mut fruitless = 0;
    for &template in order.iter().cycle() {
        if found.len() == count || fruitless == n_templates {
            break;
        }
        let made = (0..TRIES).map(|_| make(rng, template)).find(|(text, _)| !taken.contains(text));
        fruitless = if made.is_some() { 0 } else { fruitless + 1 };
        if let Some((text, more)) = made {
            taken.insert(text.clone());
            found.push((text, more));
        }
    }
    found
}
