// A torch::nn network observed in C++: its activations are read where they lie, on torch's own
// threads; then its neurons are put in a smooth order, in the module itself:
//
//   libtorch WIDTH BATCH BATCHES EVERY [PAIRS]
//
// With PAIRS it prints what observing costs instead, as JSON. Both in float32 and in bfloat16.
#include <ATen/Parallel.h>
#include <torch/torch.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "descramble_fast/covariance.hpp"
#include "descramble_fast/permutation.hpp"
#include "timing.h"

namespace df = descramble_fast;

namespace {

struct MlpImpl : torch::nn::Module {
  explicit MlpImpl(std::int64_t n)
      : fc1(register_module("fc1", torch::nn::Linear(n, n))),
        fc2(register_module("fc2", torch::nn::Linear(n, n))) {}
  torch::nn::Linear fc1, fc2;
};
TORCH_MODULE(Mlp);

/// torch's threads, so that no others want the cores on which these spin for a while after each
/// loop.
class TorchThreads final : public df::Executor {
 public:
  void run(int count, const std::function<void(int)>& task) override {
    at::parallel_for(0, count, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) task(int(i));
    });
  }
};

df::DType dtype_of(const torch::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case torch::kFloat64:
      return df::DType::float64;
    case torch::kFloat32:
      return df::DType::float32;
    case torch::kBFloat16:
      return df::DType::bfloat16;
    case torch::kFloat16:
      return df::DType::float16;
    default:
      throw std::runtime_error(std::string("dtype ") + torch::toString(tensor.scalar_type()) +
                               ", expected a floating one");
  }
}

/// A tensor as the library sees it: the same memory, sizes and strides.
df::ArrayView view_of(const torch::Tensor& tensor) {
  if (!tensor.device().is_cpu())
    throw std::runtime_error("device " + tensor.device().str() + ", expected cpu");
  const auto shape = tensor.sizes(), strides = tensor.strides();
  const df::ArrayView view(tensor.data_ptr(), dtype_of(tensor), {shape.data(), shape.size()},
                           {strides.data(), strides.size()});
  if (view.data() != tensor.data_ptr()) throw std::runtime_error("the tensor has been copied");
  return view;
}

/// Runs all batches (batches, batch, n), and adds every N-th batch's hidden activations to the
/// moments, if any.
torch::Tensor infer(Mlp& mlp, const torch::Tensor& inputs, std::int64_t every,
                    df::Covariance* moments, const df::Context& context) {
  std::vector<torch::Tensor> outputs;
  for (std::int64_t i = 0; i < inputs.size(0); ++i) {
    const torch::Tensor hidden = mlp->fc1(inputs[i]).relu_();
    if (moments != nullptr && i % every == 0) moments->update(view_of(hidden), {}, context);
    outputs.push_back(mlp->fc2(hidden));
  }
  return torch::cat(outputs);
}

/// Neuron order[i] moves to place i: rows of W1 and b1, columns of W2.
void reorder(Mlp& mlp, const std::vector<std::int64_t>& order) {
  const torch::Tensor index = torch::tensor(order);
  mlp->fc1->weight.copy_(mlp->fc1->weight.index_select(0, index));
  mlp->fc1->bias.copy_(mlp->fc1->bias.index_select(0, index));
  mlp->fc2->weight.copy_(mlp->fc2->weight.index_select(1, index));
}

/// Each hidden neuron looks at one place of the inputs, in no order.
void tune(Mlp& mlp, std::int64_t n) {
  const double width = double(n) / 16;
  const auto away = (torch::arange(n) - torch::rand({n, 1}) * n) / width;
  mlp->fc1->weight.copy_(((-away * away).exp() + 0.05 * torch::randn({n, n})) / std::sqrt(width));
}

void run(torch::Dtype dtype, const char* name, std::int64_t n, std::int64_t batch,
         std::int64_t batches, std::int64_t every, int pairs) {
  const torch::NoGradGuard no_grad;
  torch::manual_seed(0);
  Mlp mlp(n);
  tune(mlp, n);
  mlp->to(dtype);
  const auto inputs = torch::randn({batches, batch, n}).to(dtype);

  TorchThreads threads;
  df::Context context;
  context.threads = at::get_num_threads();
  context.executor = &threads;
  df::Covariance moments(n);

  if (pairs > 0) {
    char head[256];
    std::snprintf(head, sizeof head,
                  "\"example\": \"libtorch\", \"dtype\": \"%s\", \"layers\": 2, \"n\": %lld, "
                  "\"batch\": %lld, \"batches\": %lld, \"every\": %lld, \"threads\": %d",
                  name, (long long)n, (long long)batch, (long long)batches, (long long)every,
                  context.threads);
    std::function<void(bool)> once = [&](bool observe) {
      infer(mlp, inputs, every, observe ? &moments : nullptr, context);
    };
    print_overhead(
        head,
        [](void* self, int observe) {
          (*static_cast<std::function<void(bool)>*>(self))(observe != 0);
        },
        &once, pairs);
    return;
  }

  const torch::Tensor before = infer(mlp, inputs, every, &moments, context);
  const auto found = df::descramble_permutation(
      moments, df::Operator::difference(n, 1, df::Boundary::path), {}, context);
  reorder(mlp, found.permutation);
  const torch::Tensor after = infer(mlp, inputs, every, nullptr, context);

  // The same float32 sums in another order, n roundings of which are allowed, rounded to dtype.
  const double bound = double(n) * std::ldexp(1, -24) + (dtype == torch::kBFloat16 ? 1.0 / 128 : 0);
  const double moved =
      ((after - before).abs().max().to(torch::kFloat64) / before.abs().max()).item<double>();
  std::printf("%s: %lld neurons, %lld samples, roughness %.4g, in order %.4g\n", name, (long long)n,
              (long long)moments.count(), found.initial_cost, found.cost);
  std::printf("outputs moved by %.1e of the largest, %.1e allowed\n", moved, bound);
  if (!(moved <= bound)) throw std::runtime_error("the outputs have changed");
  if (!(found.cost < found.initial_cost)) throw std::runtime_error("the order is no better");
}

}  // namespace

int main(int argc, char** argv) {
  try {
    long long given[5] = {0};
    for (int i = 0; i < 5 && i + 1 < argc; ++i) given[i] = std::atoll(argv[i + 1]);
    const auto [n, batch, batches, every, pairs] = given;
    if (argc < 5 || argc > 6 || n < 2 || batch < 1 || batches < 1 || every < 1 || pairs < 0)
      throw std::runtime_error("expected WIDTH BATCH BATCHES EVERY [PAIRS], all above 0");
    run(torch::kFloat32, "float32", n, batch, batches, every, int(pairs));
    run(torch::kBFloat16, "bfloat16", n, batch, batches, every, int(pairs));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "libtorch: %s\n", error.what());
    return 1;
  }
}
