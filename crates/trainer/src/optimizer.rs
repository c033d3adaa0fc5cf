//! `AdamW` (Loshchilov & Hutter, arXiv 1711.05101) with global gradient clipping, and the learning-rate
//! schedule. Written out because tch's own neither returns the gradient norm nor saves its moments. Used
//! by `train`, `pretrain`, `checkpoint` and `survey`.

use tch::Tensor;

const BETAS: (f64, f64) = (0.9, 0.98);
const EPSILON: f64 = 1e-8;

/// The optimizer of a fixed list of parameters.
#[derive(Debug)]
pub(crate) struct AdamW {
    parameters: Vec<Tensor>,
    moments: Vec<(Tensor, Tensor)>,
    weight_decay: f64,
    max_grad_norm: f64,
    steps: i32,
}

impl AdamW {
    pub(crate) fn new(parameters: Vec<Tensor>, weight_decay: f64, max_grad_norm: f64) -> Self {
        let moments = parameters.iter().map(|p| (p.zeros_like(), p.zeros_like())).collect();
        Self { parameters, moments, weight_decay, max_grad_norm, steps: 0 }
    }
    /// The parameters, which share their memory with the model's.
    pub(crate) fn parameters(&self) -> &[Tensor] {
        &self.parameters
    }
    /// First and second moments of each parameter.
    pub(crate) fn moments(&self) -> (Vec<Tensor>, Vec<Tensor>) {
        self.moments.iter().map(|(m, v)| (m.shallow_clone(), v.shallow_clone())).unzip()
    }
    /// Sets parameters and moments to what they were after `steps` steps.
    pub(crate) fn restore(
        &mut self,
        steps: i32,
        parameters: &[Tensor],
        moments: &[Vec<Tensor>; 2],
    ) {
        let _guard = tch::no_grad_guard();
        for (own, stored) in self.parameters.iter_mut().zip(parameters) {
            own.copy_(stored);
        }
        for (((m, v), first), second) in self.moments.iter_mut().zip(&moments[0]).zip(&moments[1]) {
            m.copy_(first);
            v.copy_(second);
        }
        self.steps = steps;
    }
    /// Sets all gradients to zero.
    pub(crate) fn zero_grad(&mut self) {
        self.parameters.iter_mut().for_each(Tensor::zero_grad);
    }
    /// Clips and applies the gradients; returns their norm before clipping.
    pub(crate) fn update(&mut self, learning_rate: f64) -> f64 {
        let _guard = tch::no_grad_guard();
        let grads: Vec<Tensor> = self.parameters.iter().map(Tensor::grad).collect();
        let norms: Vec<Tensor> = grads.iter().filter(|g| g.defined()).map(Tensor::norm).collect();
        let norm = Tensor::stack(&norms, 0).norm().double_value(&[]);
        let clip = (self.max_grad_norm / (norm + 1e-6)).min(1.0);
        self.steps += 1;
        let bias = (1.0 - BETAS.0.powi(self.steps), 1.0 - BETAS.1.powi(self.steps));
        for ((parameter, (m, v)), grad) in
            self.parameters.iter_mut().zip(&mut self.moments).zip(&grads)
        {
            if !grad.defined() {
                continue;
            }
            let grad = grad * clip;
            *m *= BETAS.0;
            *m += &grad * (1.0 - BETAS.0);
            *v *= BETAS.1;
            *v += grad.square() * (1.0 - BETAS.1);
            let denominator = (&*v / bias.1).sqrt() + EPSILON;
            *parameter *= 1.0 - learning_rate * self.weight_decay;
            *parameter -= &*m / bias.0 / denominator * learning_rate;
        }
        norm
    }
}

/// Share of the peak learning rate at a step: linear warm-up over `warmup_ratio` of all steps, then a
/// cosine decay to `final_fraction`.
pub(crate) fn learning_rate(
    step: usize,
    n_steps: usize,
    warmup_ratio: f64,
    final_fraction: f64,
) -> f64 {
    let warmup = (warmup_ratio * n_steps as f64).ceil().max(1.0);
    let step = step as f64;
    if step < warmup {
        return (step + 1.0) / warmup;
    }
    let progress = (step - warmup) / (n_steps as f64 - warmup).max(1.0);
    final_fraction + (1.0 - final_fraction) * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
}
