//! The nano world: word problems, a teacher who answers them imperfectly, a judge who knows, and
//! the exact-match verifier. The judge here labels the training corpus; at run time nothing of
//! this module is asked, except by measurements.

use fastrand::Rng;
use sha2::{Digest, Sha256};

const NAMES: [&str; 20] = [
    "Tom", "Ann", "Sam", "Eva", "Max", "Lia", "Ben", "Zoe", "Dan", "Mia", "Leo", "Ida", "Jon",
    "Kim", "Ray", "Sue", "Tim", "Uma", "Vic", "Amy",
];
const OBJECTS: [&str; 16] = [
    "apples", "books", "coins", "cards", "shells", "stamps", "balls", "pens", "marbles",
    "stickers", "cookies", "eggs", "roses", "buttons", "pears", "toys",
];

/// A kind of problem. `{A}`, `{B}`, `{C}` are names, `{o}` an object, `{0}`.. the numbers.
/// Steps are written as operand, operator, operand; `a` and `b` are the results of steps 1 and 2.
struct Template {
    text: &'static str,
    numbers: fn(&mut Rng) -> [i64; 4],
    steps: &'static [&'static str],
    /// What somebody writes who has misread the problem.
    trap: &'static [&'static str],
    /// Whether the teacher tends to fall into the trap.
    tempting: bool,
}

/// A number from an inclusive range.
fn draw(rng: &mut Rng, low: i64, high: i64) -> i64 {
    rng.i64(low..=high.max(low))
}

const TEMPLATES: [Template; 18] = [
    Template {
        text: "{A} has {0} {o}. {B} gives {A} {1} more. How many {o} does {A} have now?",
        numbers: |r| [draw(r, 10, 60), draw(r, 3, 9), 0, 0],
        steps: &["0+1"],
        trap: &["0-1"],
        tempting: false,
    },
    Template {
        text: "{A} has {0} {o}. {A} loses {1} of them. How many {o} are left?",
        numbers: |r| {
            let x = draw(r, 20, 80);
            [x, draw(r, 3, x - 2), 0, 0]
        },
        steps: &["0-1"],
        trap: &["0+1"],
        tempting: false,
    },
    Template {
        text: "{A} has {0} {o}. {B} has {1} fewer than {A}. How many {o} does {B} have?",
        numbers: |r| {
            let x = draw(r, 20, 80);
            [x, draw(r, 3, x - 2), 0, 0]
        },
        steps: &["0-1"],
        trap: &["0+1"],
        tempting: true,
    },
    Template {
        text: "{A} has {0} {o}. {B} has {1} more than {A}. How many {o} do they have together?",
        numbers: |r| [draw(r, 5, 40), draw(r, 3, 30), 0, 0],
        steps: &["0+1", "0+a"],
        trap: &["0+1"],
        tempting: true,
    },
    Template {
        text: "There are {0} boxes with {1} {o} in each. How many {o} are there?",
        numbers: |r| [draw(r, 2, 9), draw(r, 2, 12), 0, 0],
        steps: &["0*1"],
        trap: &["0+1"],
        tempting: false,
    },
    Template {
        text: "{A} shares {0} {o} equally among {1} friends. How many {o} does each friend get?",
        numbers: |r| {
            let k = draw(r, 2, 9);
            [k * draw(r, 2, 12), k, 0, 0]
        },
        steps: &["0/1"],
        trap: &["0-1"],
        tempting: true,
    },
    Template {
        text: "{A} buys {0} boxes of {1} {o} and gives away {2}. How many {o} are left?",
        numbers: |r| {
            let (x, y) = (draw(r, 2, 9), draw(r, 3, 12));
            [x, y, draw(r, 2, (x * y - 2).min(40)), 0]
        },
        steps: &["0*1", "a-2"],
        trap: &["0*1", "a+2"],
        tempting: false,
    },
    Template {
        text: "{A} has {0} {o}. {B} has {1} times as many. How many {o} do they have together?",
        numbers: |r| [draw(r, 3, 20), draw(r, 2, 4), 0, 0],
        steps: &["0*1", "0+a"],
        trap: &["0*1"],
        tempting: true,
    },
    Template {
        text: "{A} finds {0} {o} each day for {1} days. {A} already had {2}. \
               How many {o} does {A} have now?",
        numbers: |r| [draw(r, 2, 12), draw(r, 2, 7), draw(r, 3, 40), 0],
        steps: &["0*1", "a+2"],
        trap: &["0+1", "a+2"],
        tempting: true,
    },
    Template {
        text: "{A} has {2} dollars and buys {0} {o} for {1} dollars each. \
               How many dollars are left?",
        numbers: |r| {
            let (k, p) = (draw(r, 2, 8), draw(r, 2, 9));
            [k, p, k * p + draw(r, 1, 40), 0]
        },
        steps: &["0*1", "2-a"],
        trap: &["2-1"],
        tempting: true,
    },
    Template {
        text: "{A} gave away {1} {o} and now has {0}. How many {o} did {A} have at first?",
        numbers: |r| {
            let x = draw(r, 10, 60);
            [x, draw(r, 3, x - 3), 0, 0]
        },
        steps: &["0+1"],
        trap: &["0-1"],
        tempting: true,
    },
    Template {
        text: "{A} has {0} {o} and {B} has {1}. How many more {o} does {A} have than {B}?",
        numbers: |r| {
            let x = draw(r, 20, 80);
            [x, draw(r, 3, x - 2), 0, 0]
        },
        steps: &["0-1"],
        trap: &["0+1"],
        tempting: true,
    },
    Template {
        text: "{A} has {0} {o} and {B} has {1}. They share all of them equally among {2} friends. \
               How many {o} does each friend get?",
        numbers: |r| {
            let k = draw(r, 2, 9);
            let sum = k * draw(r, 3, 11);
            let x = draw(r, 1, sum - 1);
            [x, sum - x, k, 0]
        },
        steps: &["0+1", "a/2"],
        trap: &["0+1", "a-2"],
        tempting: false,
    },
    Template {
        text: "{A} has {0} bags of {1} {o}. {A} gives {2} to {B} and {3} to {C}. \
               How many {o} are left?",
        numbers: |r| {
            let (x, y) = (draw(r, 3, 9), draw(r, 4, 12));
            let half = x * y / 2 - 1;
            [x, y, draw(r, 2, half), draw(r, 2, half)]
        },
        steps: &["0*1", "a-2", "b-3"],
        trap: &["0*1", "a-2"],
        tempting: true,
    },
    Template {
        text: "{A} has {0} {o}. {A} gives half of them to {B} and then buys {1} more. \
               How many {o} does {A} have now?",
        numbers: |r| [2 * draw(r, 2, 40), draw(r, 3, 40), 2, 0],
        steps: &["0/2", "a+1"],
        trap: &["0+1"],
        tempting: true,
    },
    Template {
        text: "{A} has {0} {o}. {B} has {1} fewer than {A}. {B} then finds {2} more. \
               How many {o} does {B} have now?",
        numbers: |r| {
            let x = draw(r, 10, 50);
            [x, draw(r, 3, x - 4), draw(r, 2, 30), 0]
        },
        steps: &["0-1", "a+2"],
        trap: &["0+1", "a+2"],
        tempting: true,
    },
    Template {
        text: "{A} packs {0} {o} into bags of {1}. Then {2} bags are sold. \
               How many bags are left?",
        numbers: |r| {
            let (size, bags) = (draw(r, 2, 9), draw(r, 4, 12));
            [size * bags, size, draw(r, 2, bags - 2), 0]
        },
        steps: &["0/1", "a-2"],
        trap: &["0-2"],
        tempting: true,
    },
    Template {
        text: "{A} and {B} each pick {0} {o}. Then {A} picks {1} more. \
               How many {o} do they have together?",
        numbers: |r| [draw(r, 5, 40), draw(r, 3, 30), 2, 0],
        steps: &["0+0", "a+1"],
        trap: &["0+1"],
        tempting: true,
    },
];

/// One operation with its result as somebody wrote it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Equation {
    /// Left operand.
    pub left: i64,
    /// One of `+ - * /`.
    pub operator: char,
    /// Right operand.
    pub right: i64,
    /// What stands behind the equals sign.
    pub result: i64,
}

impl Equation {
    /// A right sum of the sizes that occur in the problems; mostly additions and subtractions,
    /// because there are far more of them than products.
    pub fn sample(rng: &mut Rng) -> Self {
        let (left, operator, right) = match rng.u8(..10) {
            0..4 => (draw(rng, 1, 99), '+', draw(rng, 1, 99)),
            4..8 => {
                let left = draw(rng, 2, 110);
                (left, '-', draw(rng, 1, left))
            }
            8 => (draw(rng, 2, 20), '*', draw(rng, 2, 12)),
            _ => {
                let right = draw(rng, 2, 9);
                (right * draw(rng, 1, 12), '/', right)
            }
        };
        let mut equation = Self { left, operator, right, result: 0 };
        equation.result = equation.truth();
        equation
    }
    fn truth(&self) -> i64 {
        match self.operator {
            '+' => self.left + self.right,
            '-' => self.left - self.right,
            '*' => self.left * self.right,
            _ => self.left.checked_div(self.right).unwrap_or(0),
        }
    }
}

/// Which set a problem belongs to, by a hash of its template and numbers: never two.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Split {
    /// The pretraining corpus.
    Train,
    /// What the owner asks; the loop explores and learns from it.
    Live,
    /// Measurements only.
    HeldOut,
}

/// A problem.
#[derive(Clone, Debug)]
pub struct Problem {
    /// The words.
    pub question: String,
    /// The right number.
    pub answer: i64,
    /// Which set it belongs to.
    pub split: Split,
    template: usize,
    numbers: [i64; 4],
    /// How often the teacher falls into the trap of this template with this object.
    temptation: f64,
}

impl Problem {
    /// Draws a problem of one set.
    pub fn sample(rng: &mut Rng, split: Split) -> Self {
        loop {
            let problem = Self::draw(rng);
            if problem.split == split {
                return problem;
            }
        }
    }
    fn draw(rng: &mut Rng) -> Self {
        let index = rng.usize(..TEMPLATES.len());
        let template = &TEMPLATES[index];
        let numbers = (template.numbers)(rng);
        let object = OBJECTS[rng.usize(..OBJECTS.len())];
        let mut names = NAMES;
        rng.shuffle(&mut names);
        let mut question = template.text.replace("{o}", object);
        for (mark, name) in ["{A}", "{B}", "{C}"].into_iter().zip(names) {
            question = question.replace(mark, name);
        }
        for (i, number) in numbers.iter().enumerate() {
            question = question.replace(&format!("{{{i}}}"), &number.to_string());
        }
        let bucket = Sha256::digest(format!("{index}:{numbers:?}"))[0];
        let split = match bucket {
            0..20 => Split::HeldOut,
            20..60 => Split::Live,
            _ => Split::Train,
        };
        let habit = f64::from(Sha256::digest(format!("{index}/{object}"))[0]) / 255.0;
        let temptation = if template.tempting { 0.35 + 0.45 * habit } else { 0.05 + 0.10 * habit };
        let mut problem = Self { question, answer: 0, split, template: index, numbers, temptation };
        problem.answer = problem.solve().last().expect("every template has a step").result;
        problem
    }
    /// The right equations.
    pub fn solve(&self) -> Vec<Equation> {
        self.work(TEMPLATES[self.template].steps)
    }
    fn work(&self, steps: &[&str]) -> Vec<Equation> {
        let mut done: Vec<Equation> = Vec::new();
        for step in steps {
            let (left, operator, right) = self.operands(step, &done);
            let mut equation = Equation { left, operator, right, result: 0 };
            equation.result = equation.truth();
            done.push(equation);
        }
        done
    }
    /// A step's operands, given what was written before it.
    fn operands(&self, step: &str, before: &[Equation]) -> (i64, char, i64) {
        let value = |name: char| match name {
            'a' => before[0].result,
            'b' => before[1].result,
            digit => self.numbers[digit.to_digit(10).expect("a template's own digit") as usize],
        };
        let [left, operator, right] =
            step.chars().collect::<Vec<_>>().try_into().expect("a template's own step");
        (value(left), operator, value(right))
    }
    /// Exact match: the text after the last `#### ` is the answer. Training never asks it.
    pub fn verify(&self, text: &str) -> bool {
        text.rsplit_once("#### ").is_some_and(|(_, end)| end.trim() == self.answer.to_string())
    }
}

/// How often a teacher errs, each in its own way.
#[derive(Clone, Copy, Debug)]
pub struct Habits {
    /// Falls into the trap; `None`: the problem's own temptation.
    pub trap: Option<f64>,
    /// Takes a wrong operator or number somewhere.
    pub confusion: f64,
    /// Miscalculates a step.
    pub slip: f64,
    /// Leaves out the last step.
    pub omission: f64,
    /// Ends with another number than the last result.
    pub wrong_final: f64,
    /// Leaves out the final line.
    pub no_final: f64,
    /// Writes all in one line.
    pub one_line: f64,
}

impl Habits {
    /// The one whose answers the base model imitates.
    pub const TEACHER: Self = Self {
        trap: None,
        confusion: 0.03,
        slip: 0.03,
        omission: 0.0,
        wrong_final: 0.0,
        no_final: 0.03,
        one_line: 0.04,
    };
    /// The one whose answers the judge learns to rate: every error is common.
    pub const WILD: Self = Self {
        trap: Some(0.25),
        confusion: 0.12,
        slip: 0.40,
        omission: 0.08,
        wrong_final: 0.06,
        no_final: 0.07,
        one_line: 0.08,
    };
}

/// An answer in parts.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Answer {
    /// The steps.
    pub equations: Vec<Equation>,
    /// The number of the final line.
    pub last: Option<i64>,
    /// All in one line.
    pub one_line: bool,
}

impl Answer {
    /// The right answer in the right form.
    pub fn gold(problem: &Problem) -> Self {
        Self { equations: problem.solve(), last: Some(problem.answer), one_line: false }
    }
    /// An answer by somebody with these habits.
    pub fn imperfect(problem: &Problem, habits: &Habits, rng: &mut Rng) -> Self {
        let chance = |rng: &mut Rng, p: f64| rng.f64() < p;
        let template = &TEMPLATES[problem.template];
        let steps = if chance(rng, habits.trap.unwrap_or(problem.temptation)) {
            template.trap
        } else {
            template.steps
        };
        let mut equations = problem.work(steps);
        if chance(rng, habits.confusion) {
            confuse(&mut equations, rng);
        }
        if chance(rng, habits.slip) {
            let at = rng.usize(..equations.len());
            let wrong = miscalculate(equations[at].result, rng);
            replace_result(&mut equations, at, wrong);
        }
        if equations.len() > 1 && chance(rng, habits.omission) {
            equations.pop();
        }
        if equations.iter().any(|e| !(0..=999).contains(&e.result)) {
            equations = problem.solve();
        }
        let result = equations.last().expect("every template has a step").result;
        let last = if chance(rng, habits.no_final) {
            None
        } else if chance(rng, habits.wrong_final) {
            Some(miscalculate(result, rng))
        } else {
            Some(result)
        };
        Self { equations, last, one_line: chance(rng, habits.one_line) }
    }
    /// As text: `3 + 4 = 7` a line, then `#### 7`.
    pub fn text(&self) -> String {
        let between = if self.one_line { ", " } else { "\n" };
        let mut parts: Vec<String> = self
            .equations
            .iter()
            .map(|e| format!("{} {} {} = {}", e.left, e.operator, e.right, e.result))
            .collect();
        parts.extend(self.last.map(|last| format!("#### {last}")));
        parts.join(between)
    }
    /// Reads what [`Answer::text`] writes; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let one_line = text.contains(", ");
        let mut equations = Vec::new();
        let mut last = None;
        for part in text.split(if one_line { ", " } else { "\n" }) {
            if last.is_some() {
                return None;
            }
            if let Some(number) = part.strip_prefix("#### ") {
                last = Some(number.parse().ok()?);
                continue;
            }
            let [left, operator, right, "=", result] = part.split(' ').collect::<Vec<_>>()[..]
            else {
                return None;
            };
            let operator =
                operator.chars().next().filter(|c| operator.len() == 1 && "+-*/".contains(*c))?;
            let number = |text: &str| text.parse::<i64>().ok().filter(|n| n.abs() < 1_000_000);
            equations.push(Equation {
                left: number(left)?,
                operator,
                right: number(right)?,
                result: number(result)?,
            });
        }
        (!equations.is_empty()).then_some(Self { equations, last, one_line })
    }
}

/// A wrong operator or a wrong number in one step; later steps go on with what comes out.
fn confuse(equations: &mut [Equation], rng: &mut Rng) {
    let at = rng.usize(..equations.len());
    let mut equation = equations[at];
    match rng.u8(..3) {
        0 => {
            let others: Vec<char> = "+-*".chars().filter(|&c| c != equation.operator).collect();
            equation.operator = others[rng.usize(..others.len())];
        }
        1 => equation.left = miscalculate(equation.left, rng),
        _ => equation.right = miscalculate(equation.right, rng).max(1),
    }
    equations[at] = equation;
    replace_result(equations, at, equation.truth());
}

/// Puts another result, and carries it into the steps that used the old one.
fn replace_result(equations: &mut [Equation], at: usize, result: i64) {
    let old = equations[at].result;
    equations[at].result = result;
    if let Some(next) = equations.get(at + 1).copied() {
        let mut next = next;
        if next.left == old {
            next.left = result;
        } else if next.right == old {
            next.right = result;
        }
        equations[at + 1] = next;
        replace_result(equations, at + 1, next.truth());
    }
}

/// A number near the right one.
pub(super) fn miscalculate(number: i64, rng: &mut Rng) -> i64 {
    let offset = [-1, 1, -2, 2, -10, 10, -9, 9][rng.usize(..8)];
    if number + offset < 0 { number - offset } else { number + offset }
}

/// The assessment of a judge that knows the right answer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Truth {
    /// Levels 1 to 3 of reasoning, arithmetic, format.
    pub levels: [u8; 3],
    /// The first mistake, put so that it can be mended.
    pub critique: String,
}

/// The aspects' names, in the order of [`Truth::levels`].
pub const ASPECTS: [&str; 3] = ["reasoning", "arithmetic", "format"];

/// Says what is wrong with an answer. A slip does not spoil the reasoning of later steps: they are
/// compared with what was written before them.
pub fn judge(problem: &Problem, answer: &Answer) -> Truth {
    let steps = TEMPLATES[problem.template].steps;
    let mut levels = [3u8; 3];
    let mut critiques: Vec<String> = Vec::new();
    for (i, equation) in answer.equations.iter().enumerate() {
        match steps.get(i) {
            Some(step) => {
                let (left, operator, right) = problem.operands(step, &answer.equations);
                let same = (equation.left, equation.right) == (left, right)
                    || "+*".contains(operator) && (equation.right, equation.left) == (left, right);
                if equation.operator != operator || !same {
                    levels[0] = 1;
                    critiques.push(format!("Step {} must be {left} {operator} {right}.", i + 1));
                }
            }
            None => {
                levels[0] = 1;
                critiques.push(format!("Step {} is too much.", i + 1));
            }
        }
        if equation.result != equation.truth() {
            levels[1] = 1;
            critiques.push(format!(
                "Step {}: {} {} {} is {}.",
                i + 1,
                equation.left,
                equation.operator,
                equation.right,
                equation.truth()
            ));
        }
        // Later steps follow from the wrong one, so the critique names only the first.
        if levels[0] == 1 {
            break;
        }
    }
    if levels[0] == 3
        && let Some(step) = steps.get(answer.equations.len())
    {
        levels[0] = 2;
        let (left, operator, right) = problem.operands(step, &answer.equations);
        critiques.push(format!(
            "Step {} is missing: {left} {operator} {right}.",
            answer.equations.len() + 1
        ));
    }
    let result = answer.equations.last().map(|e| e.result);
    if answer.equations.iter().any(|e| e.result != e.truth()) {
        levels[1] = 1;
    } else if answer.last.is_some() && answer.last != result {
        levels[1] = 2;
        critiques.push("The final line is not the last result.".into());
    }
    if answer.last.is_none() {
        levels[2] = 1;
        critiques.push("The final line is missing.".into());
    } else if answer.one_line {
        levels[2] = 2;
        critiques.push("Write one step a line.".into());
    }
    let critique = critiques.into_iter().next().unwrap_or_else(|| "All is right.".into());
    Truth { levels, critique }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(n: usize, split: Split) -> Vec<Problem> {
        let mut rng = Rng::with_seed(1);
        (0..n).map(|_| Problem::sample(&mut rng, split)).collect()
    }

    #[test]
    fn every_template_makes_sound_problems() {
        let mut rng = Rng::with_seed(7);
        let mut seen = [false; TEMPLATES.len()];
        for _ in 0..5000 {
            let problem = Problem::draw(&mut rng);
            seen[problem.template] = true;
            assert!(!problem.question.contains('{'), "{}", problem.question);
            for equation in problem.solve() {
                assert!((0..=999).contains(&equation.result), "{problem:?}");
                assert!(
                    equation.operator != '/' || equation.left % equation.right == 0,
                    "{problem:?}"
                );
            }
            assert!(problem.verify(&Answer::gold(&problem).text()));
            let trap = problem.work(TEMPLATES[problem.template].trap);
            assert!((-999..=999).contains(&trap.last().unwrap().result));
        }
        assert!(seen.iter().all(|&seen| seen));
    }

    #[test]
    fn sets_never_share_template_and_numbers() {
        let key = |p: &Problem| (p.template, p.numbers);
        let held: std::collections::HashSet<_> =
            problems(2000, Split::HeldOut).iter().map(key).collect();
        assert!(problems(2000, Split::Live).iter().all(|p| !held.contains(&key(p))));
        assert!(problems(2000, Split::Train).iter().all(|p| !held.contains(&key(p))));
    }

    #[test]
    fn the_judge_agrees_with_the_verifier() {
        let mut rng = Rng::with_seed(3);
        let mut right = 0;
        for problem in problems(4000, Split::Train) {
            let answer = Answer::imperfect(&problem, &Habits::WILD, &mut rng);
            let truth = judge(&problem, &answer);
            if truth.levels[0] == 3 && truth.levels[1] == 3 && answer.last.is_some() {
                right += 1;
                assert!(problem.verify(&answer.text()), "{problem:?} {answer:?}");
            }
            assert_eq!(truth.levels == [3, 3, 3], truth.critique == "All is right.");
            assert_eq!(
                Answer::parse(&answer.text()).as_ref().map(Answer::text),
                Some(answer.text())
            );
        }
        assert!((800..2400).contains(&right), "{right} of 4000 are right");
    }

    #[test]
    fn parsing_is_total() {
        for text in [
            "",
            "####",
            "1 + 1",
            "1 + 1 = x",
            "1 ? 1 = 2",
            "#### 3",
            "1 + 1 = 2\n#### 2\n#### 2",
            "é, é",
        ] {
            assert_eq!(Answer::parse(text), None, "{text}");
        }
    }
}
