//! Answers that copy: drafts change how fast an answer comes and never what it says.

use super::*;

const PARENT: &str = "the sum is 40 + 12 = 52, so the answer is 52. That is all there is to say.";
const ANSWER: &str = "the sum is 40 - 12 = 28, so the answer is 28. That is all there is to say.";

fn bytes(text: &str) -> Vec<Token> {
    text.bytes().map(|byte| Token(i32::from(byte))).collect()
}

/// What it answers, and the engine's counters afterwards.
async fn answer(script: &Script, wanted: GenerateRequest) -> (Answers, EngineStats) {
    let (engine, _thread) = engine(script.clone()).await;
    let prompt = prompt(&engine, "revise");
    let n = usize::try_from(wanted.n).unwrap();
    let started = engine.generate(GenerateRequest { prompt, ..wanted }).await.unwrap();
    let answers = read(started, n).await;
    (answers, eventually(&engine, |stats| stats.running == 0).await)
}

#[tokio::test]
async fn an_answer_that_copies_its_parent_takes_few_steps() {
    let script = Script::new(ANSWER);
    let greedy = Sampling { temperature: 0.0, max_tokens: 200, ..Sampling::default() };
    let wanted = GenerateRequest { sampling: greedy, ..request(Vec::new()) };
    let (plain, slow) = answer(&script, wanted.clone()).await;
    let (copied, fast) =
        answer(&script, GenerateRequest { prediction: bytes(PARENT), ..wanted }).await;
    assert_eq!(plain.texts, [ANSWER]);
    assert_eq!(copied, plain);
    assert!(3 * fast.steps < slow.steps, "{} steps instead of {}", fast.steps, slow.steps);
    assert!(0 < fast.right_drafts && fast.right_drafts < fast.drafted_tokens);
    assert_eq!(fast.generated_tokens, slow.generated_tokens);
}

#[tokio::test]
async fn sampled_answers_are_the_same_with_any_text_to_copy() {
    let endings = [("a cat sat", 2.0), ("a cat ran", 1.0), ("a dog sat", 1.0), ("all", 0.5)];
    let script = Script::new("").on("revise", &endings);
    let sampling = Sampling { seed: Some(3), max_tokens: 50, ..Sampling::default() };
    let wanted = GenerateRequest { n: 16, sampling, ..request(Vec::new()) };
    let (plain, _) = answer(&script, wanted.clone()).await;
    assert!(plain.texts.iter().any(|text| *text != plain.texts[0]));
    for text in ["a cat sat", "a dog ran", "zzz", "a"] {
        let wanted = GenerateRequest { prediction: bytes(text), ..wanted.clone() };
        assert_eq!(answer(&script, wanted).await.0, plain, "{text}");
    }
}

#[tokio::test]
async fn a_draft_ends_where_the_answer_must() {
    let script = Script::new(ANSWER);
    for max_tokens in [1, 2, 7, 30] {
        let sampling = Sampling { max_tokens, ..Sampling::default() };
        let wanted = GenerateRequest { sampling, prediction: bytes(ANSWER), ..request(Vec::new()) };
        let (answers, _) = answer(&script, wanted).await;
        assert_eq!(answers.tokens[0].len(), usize::try_from(max_tokens).unwrap());
        assert_eq!(answers.reasons, [Some(FinishReason::Length)]);
    }
    let stop = vec!["answer".to_owned()];
    let wanted = GenerateRequest { stop, prediction: bytes(ANSWER), ..request(Vec::new()) };
    let (answers, stats) = answer(&script, wanted).await;
    assert_eq!(answers.texts, ["the sum is 40 - 12 = 28, so the "]);
    // What was drafted beyond the end is not kept: the next turn would go on from it.
    let kept = "<|user|>revise<|end|><|assistant|>".len() - 2 * "<|user|>".len();
    assert!(stats.cells_used < kept + answers.texts[0].len() + "answer".len());
}
