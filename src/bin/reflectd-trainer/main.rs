use tch::Tensor;
fn main() {
    println!(
        "{}",
        Tensor::ones([2, 2], (tch::Kind::Float, tch::Device::Cpu))
            .matmul(&Tensor::ones([2, 2], (tch::Kind::Float, tch::Device::Cpu)))
            .sum(tch::Kind::Float)
    );
}
