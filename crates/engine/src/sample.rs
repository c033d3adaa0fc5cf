//! From a row of logits to a token or a log-prob. Pure: the same logits, settings and seed give
//! the same token. Logits that are not finite are an error, never a silent token, because
//! llama.cpp would sample them like any other. Used by `core/request.rs`.

use super::{EngineError, Sampling, Token, softmax};

/// Weights that are added up before one of them is looked at.
const BLOCK: usize = 1024;

/// Draws tokens for one continuation.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    rng: SplitMix64,
    /// Kept between tokens, so that a step does not allocate a vocabulary.
    weights: Vec<f32>,
}

/// A drawn token.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// The token.
    pub token: Token,
    /// Its log-prob under the untouched distribution.
    pub logprob: f32,
    /// The likeliest tokens with theirs, likeliest first.
    pub top: Vec<(Token, f32)>,
}

impl Sampler {
    /// `sampling.seed` is ignored: every continuation has a seed of its own.
    pub fn new(sampling: Sampling, seed: u64) -> Self {
        Self { sampling, rng: SplitMix64(seed), weights: Vec::new() }
    }

    /// Draws from the distribution after temperature, `top_k`, `min_p` and `top_p`, in this order:
    /// the nucleus is taken of the distribution that is sampled from.
    pub fn sample(&mut self, logits: &[f32], n_top: usize) -> Result<Sampled, EngineError> {
        let max = softmax::max(logits).ok_or_else(not_finite)?;
        let normalizer = softmax::log_sum_exp(logits, max);
        let is_greedy = self.sampling.temperature == 0.0;
        let token = if is_greedy { argmax(logits, max) } else { self.draw(logits, max) };
        let mut top = Vec::new();
        if 0 < n_top {
            let likeliest = likeliest(logits, |n, _| n_top <= n);
            let named = likeliest.into_iter().map(|(l, i)| (id(i), narrow(l, normalizer)));
            top.extend(named.take(n_top));
        }
        Ok(Sampled { token: id(token), logprob: narrow(logits[token], normalizer), top })
    }

    fn draw(&mut self, logits: &[f32], max: f32) -> usize {
        let Sampling { temperature, top_p, top_k, min_p, .. } = self.sampling;
        softmax::weigh(logits, max, temperature, &mut self.weights);
        let weights = &mut self.weights;
        // The likeliest weighs 1, so `min_p` is the least weight.
        if top_k == 0 && 0.0 < min_p {
            for weight in weights.iter_mut().filter(|weight| **weight < min_p) {
                *weight = 0.0;
            }
        }
        if top_k == 0 && 1.0 <= top_p {
            return self.rng.pick(&self.weights);
        }
        let kept = if top_k == 0 {
            let enough = f64::from(top_p) * softmax::sum(weights);
            nucleus(likeliest(weights, |_, mass| enough <= mass), enough)
        } else {
            let k = usize::try_from(top_k).unwrap_or(usize::MAX);
            let mut kept = likeliest(weights, |n, _| k <= n);
            kept.truncate(k);
            kept.retain(|&(weight, _)| min_p <= weight);
            let enough = f64::from(top_p) * kept.iter().map(|c| f64::from(c.0)).sum::<f64>();
            nucleus(kept, enough)
        };
        weights.clear();
        weights.extend(kept.iter().map(|&(weight, _)| weight));
        kept[self.rng.pick(&self.weights)].1
    }
}

/// Log-prob of one token.
pub fn logprob(logits: &[f32], token: Token) -> Result<f32, EngineError> {
    let normalizer = log_sum_exp(logits)?;
    Ok(narrow(logits[place(token)], normalizer))
}

/// The distribution over some tokens, and their share of the whole one.
pub fn label_scores(logits: &[f32], labels: &[Token]) -> Result<super::LabelScores, EngineError> {
    let normalizer = log_sum_exp(logits)?;
    let mut probabilities: Vec<f32> =
        labels.iter().map(|&label| narrow(logits[place(label)], normalizer)).collect();
    // Relative to the likeliest label, because all of them may be too unlikely for an f32.
    let max = probabilities.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mass = probabilities.iter().map(|p| p.exp()).sum::<f32>().min(1.0);
    let total: f32 = probabilities.iter().map(|p| (p - max).exp()).sum();
    for p in &mut probabilities {
        *p = (*p - max).exp() / total;
    }
    Ok(super::LabelScores { probabilities, mass })
}

fn log_sum_exp(logits: &[f32]) -> Result<f64, EngineError> {
    let max = softmax::max(logits).ok_or_else(not_finite)?;
    Ok(softmax::log_sum_exp(logits, max))
}

fn not_finite() -> EngineError {
    EngineError::Failed("the logits are not finite".to_owned())
}

#[expect(clippy::cast_possible_truncation, reason = "a log-prob needs no more than an f32")]
fn narrow(logit: f32, normalizer: f64) -> f32 {
    (f64::from(logit) - normalizer) as f32
}

fn place(token: Token) -> usize {
    usize::try_from(token.0).expect("token ids are checked at admission")
}

fn id(index: usize) -> Token {
    Token(i32::try_from(index).expect("a vocabulary has fewer than 2^31 tokens"))
}

/// The first of the largest.
fn argmax(logits: &[f32], max: f32) -> usize {
    logits.iter().position(|&logit| max <= logit).expect("the largest is one of them")
}

/// The largest numbers with their places, largest first, the lower place first in a tie: at least
/// so many that `enough` holds of their count and sum. Sorting a vocabulary is slow, so numbers are
/// counted by their leading bits, which are in the order of the numbers, and only those above the
/// mark are sorted.
fn likeliest(numbers: &[f32], enough: impl Fn(usize, f64) -> bool) -> Vec<(f32, usize)> {
    const BUCKETS: usize = 1 << 12;
    let bucket = |number: f32| {
        let bits = number.to_bits();
        let ordered = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
        usize::try_from(ordered >> 20).expect("12 bits fit")
    };
    let mut counts = vec![(0_usize, 0.0_f64); BUCKETS];
    for &number in numbers {
        let (count, sum) = &mut counts[bucket(number)];
        *count += 1;
        *sum += f64::from(number);
    }
    let (mut count, mut sum) = (0, 0.0);
    let mark = counts.iter().rposition(|of_bucket| {
        count += of_bucket.0;
        sum += of_bucket.1;
        enough(count, sum)
    });
    let mark = mark.unwrap_or(0);
    let above = numbers.iter().copied().zip(0..).filter(|&(number, _)| mark <= bucket(number));
    let mut above: Vec<(f32, usize)> = above.collect();
    above.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    above
}

/// The fewest of the likeliest that weigh enough together.
fn nucleus(mut likeliest: Vec<(f32, usize)>, enough: f64) -> Vec<(f32, usize)> {
    let mut mass = 0.0;
    let last = likeliest.iter().position(|&(weight, _)| {
        mass += f64::from(weight);
        enough <= mass
    });
    likeliest.truncate(last.map_or(likeliest.len(), |last| last + 1));
    likeliest
}

/// Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014). Neighbouring
/// seeds give unrelated streams, which matters because continuation i uses seed + i.
#[derive(Clone, Debug)]
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A place with a chance of its share of all weights, of which one is not 0.
    fn pick(&mut self, weights: &[f32]) -> usize {
        let mut left = self.unit() * softmax::sum(weights);
        // Whole blocks are passed over first: only in one of them is every weight looked at.
        for (block, numbers) in weights.chunks(BLOCK).enumerate() {
            let sum = softmax::sum(numbers);
            if sum <= left {
                left -= sum;
                continue;
            }
            for (i, &weight) in numbers.iter().enumerate() {
                left -= f64::from(weight);
                if left < 0.0 {
                    return block * BLOCK + i;
                }
            }
        }
        // Only rounding leads here: the last one with any weight is as good.
        weights.iter().rposition(|&weight| 0.0 < weight).expect("the likeliest weighs 1")
    }

    /// At least 0 and below 1.
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit exactly")]
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sampler(temperature: f32, seed: u64) -> Sampler {
        Sampler::new(Sampling { temperature, ..Sampling::default() }, seed)
    }

    #[test]
    fn splitmix_gives_the_published_numbers() {
        let mut rng = SplitMix64(1_234_567);
        assert_eq!(rng.next(), 6_457_827_717_110_365_317);
        assert_eq!(rng.next(), 3_203_168_211_198_807_973);
    }

    #[test]
    fn temperature_zero_takes_the_first_of_the_largest() {
        let sampled = sampler(0.0, 1).sample(&[0.5, 2.0, 2.0, -1.0], 2).unwrap();
        assert_eq!(sampled.token, Token(1));
        assert_eq!(sampled.top[0], (Token(1), sampled.logprob));
        assert_eq!(sampled.top[1].0, Token(2));
    }

    #[test]
    fn logits_that_are_not_finite_are_an_error() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for temperature in [0.0, 1.0] {
                let error = sampler(temperature, 1).sample(&[0.0, bad, 1.0], 0).unwrap_err();
                assert!(matches!(error, EngineError::Failed(_)));
            }
        }
        assert!(matches!(logprob(&[], Token(0)), Err(EngineError::Failed(_))));
    }

    #[test]
    fn drawn_tokens_follow_the_distribution() {
        let logits = [0.1_f32, 0.2, 0.7].map(f32::ln);
        let mut sampler = sampler(1.0, 7);
        let mut counts = [0_u32; 3];
        for _ in 0..20_000 {
            let token = sampler.sample(&logits, 0).unwrap().token;
            counts[usize::try_from(token.0).unwrap()] += 1;
        }
        // Four standard deviations of a binomial with p = 0.7 are 260.
        assert!((13_740..=14_260).contains(&counts[2]), "{counts:?}");
        assert!((1_830..=2_170).contains(&counts[0]), "{counts:?}");
    }

    #[test]
    fn the_nucleus_is_the_fewest_that_reach_the_mass() {
        let logits: Vec<f32> = [0.5_f32, 0.1, 0.3, 0.1].map(f32::ln).to_vec();
        let sampling = Sampling { top_p: 0.75, ..Sampling::default() };
        let mut sampler = Sampler::new(sampling, 3);
        for _ in 0..200 {
            assert!(matches!(sampler.sample(&logits, 0).unwrap().token.0, 0 | 2));
        }
    }

    #[test]
    fn labels_share_the_mass_even_when_all_are_unlikely() {
        let scores =
            label_scores(&[100.0, -100.0, -100.0 + 2.0_f32.ln()], &[Token(1), Token(2)]).unwrap();
        assert!((scores.probabilities[1] - 2.0 / 3.0).abs() < 1e-4);
        assert!(scores.mass < 1e-6);
    }

    proptest! {
        #[test]
        fn a_drawn_token_is_inside_every_cut(
            logits in prop::collection::vec(-30.0_f32..30.0, 1..600),
            temperature in 0.01_f32..10.0,
            top_p in 0.01_f32..=1.0,
            top_k in 0_u32..50,
            min_p in 0.0_f32..=1.0,
            seed: u64,
        ) {
            let sampling = Sampling { temperature, top_p, top_k, min_p, ..Sampling::default() };
            let sampled = Sampler::new(sampling, seed).sample(&logits, 3).unwrap();
            let chosen = logits[usize::try_from(sampled.token.0).unwrap()];
            let rank = logits.iter().filter(|&&l| l > chosen).count();
            prop_assert!(top_k == 0 || rank < usize::try_from(top_k).unwrap());
            let max = logits.iter().copied().fold(f32::MIN, f32::max);
            prop_assert!(((chosen - max) / temperature).exp() >= min_p);
            prop_assert!(sampled.logprob <= 1e-6);
            prop_assert_eq!(sampled.top.len(), logits.len().min(3));
            let again = Sampler::new(sampling, seed).sample(&logits, 3).unwrap();
            prop_assert_eq!(sampled, again);
        }
    }
}
