// Inference with a plain MLP that streams its hidden activations through descramble_fast, and then
// puts its neurons in a smooth order:
//
//   mlp --random 512 model.safetensors             writes a network to try it on
//   mlp model.safetensors reordered.safetensors    observes, reorders, writes, checks
//   mlp model.safetensors --time 9                 what observing costs, in 9 pairs of runs, as
//   JSON
//
// The network is fc1.weight (n_1, n_0), fc1.bias (n_1,), fc2.weight, ... with ReLU between the
// layers; inputs are those of --inputs FILE, a tensor "inputs" (samples, n_0), or random.
#include <algorithm>
#include <barrier>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <mutex>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "descramble_fast/covariance.hpp"
#include "descramble_fast/permutation.hpp"
#include "safetensors.hpp"
#include "timing.h"

// Inference is timed against the BLAS that is there in any case, OpenBLAS beside the library. It
// comes without headers, and with 64-bit integers.
extern "C" {
void scipy_cblas_sgemm64_(int order, int trans_a, int trans_b, std::int64_t m, std::int64_t n,
                          std::int64_t k, float alpha, const float* a, std::int64_t lda,
                          const float* b, std::int64_t ldb, float beta, float* c, std::int64_t ldc);
void scipy_openblas_set_num_threads64_(int threads);
}

namespace df = descramble_fast;

namespace {

/// The program's threads, for its matrix products as for the library's loops, so that no more run
/// than it was given.
class Threads final : public df::Executor {
 public:
  explicit Threads(int count) : begin_(count), end_(count) {
    for (int i = 1; i < count; ++i) workers_.emplace_back([this, i] { work(i); });
  }
  ~Threads() override {
    task_ = nullptr;
    begin_.arrive_and_wait();
  }
  int count() const { return int(workers_.size()) + 1; }
  df::Context context() {
    df::Context out;
    out.threads = count();
    out.executor = this;
    return out;
  }

  void run(int count, const std::function<void(int)>& task) override {
    const std::lock_guard lock(mutex_);
    task_ = &task;
    wanted_ = count;
    begin_.arrive_and_wait();
    task(0);
    end_.arrive_and_wait();
  }

 private:
  void work(int i) {
    while (true) {
      begin_.arrive_and_wait();
      if (task_ == nullptr) return;
      if (i < wanted_) (*task_)(i);
      end_.arrive_and_wait();
    }
  }

  std::mutex mutex_;
  std::barrier<> begin_, end_;
  const std::function<void(int)>* task_ = nullptr;
  int wanted_ = 0;
  std::vector<std::jthread> workers_;
};

struct Options {
  std::string model, reordered, inputs;
  std::int64_t batch = 512, batches = 64, every = 16, random = 0;
  int threads = df::num_threads(), pairs = 0;
};

Options parsed(int argc, char** argv) {
  Options out;
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    const auto value = [&] {
      if (++i == argc) throw std::runtime_error(option + ": expected a value");
      return std::string(argv[i]);
    };
    const auto number = [&] {
      const int found = std::atoi(value().c_str());
      if (found < 1) throw std::runtime_error(option + ": expected a number above 0");
      return found;
    };
    if (option == "--inputs")
      out.inputs = value();
    else if (option == "--batch")
      out.batch = number();
    else if (option == "--batches")
      out.batches = number();
    else if (option == "--every")
      out.every = number();
    else if (option == "--random")
      out.random = number();
    else if (option == "--threads")
      out.threads = number();
    else if (option == "--time")
      out.pairs = number();
    else if (option.starts_with("-") || !out.reordered.empty())
      throw std::runtime_error(option +
                               ": expected MODEL [REORDERED] [--inputs FILE] [--every N] " +
                               "[--batch N] [--batches N] [--threads N] [--random N] [--time N]");
    else
      (out.model.empty() ? out.model : out.reordered) = option;
  }
  if (out.model.empty()) throw std::runtime_error("expected the path of a model");
  if (out.reordered.empty() && out.random + out.pairs == 0)
    throw std::runtime_error("expected a path for the reordered model, or --time");
  return out;
}

/// A network whose n hidden neurons each look at one place of n inputs, in no order.
Tensors random_network(std::int64_t n) {
  std::mt19937_64 bits(0);
  std::normal_distribution<float> normal;
  std::uniform_real_distribution<float> place(0, float(n));
  const float width = float(n) / 16;
  Tensors out;
  auto& first = out["fc1.weight"] = {{n, n}, std::vector<float>(std::size_t(n * n))};
  for (std::int64_t i = 0; i < n; ++i) {
    const float middle = place(bits);
    for (std::int64_t j = 0; j < n; ++j) {
      const float away = (float(j) - middle) / width;
      first.values[std::size_t(i * n + j)] =
          (std::exp(-away * away) + 0.05f * normal(bits)) / std::sqrt(width);
    }
  }
  auto& second = out["fc2.weight"] = {{n, n}, std::vector<float>(std::size_t(n * n))};
  for (float& w : second.values) w = normal(bits) / std::sqrt(float(n));
  for (const char* name : {"fc1.bias", "fc2.bias"}) {
    auto& bias = out[name] = {{n}, std::vector<float>(std::size_t(n))};
    for (float& b : bias.values) b = 0.1f * normal(bits);
  }
  return out;
}

std::string text(const std::vector<std::int64_t>& shape) {
  std::string out;
  for (const std::int64_t length : shape)
    out += (out.empty() ? "" : ", ") + (length < 0 ? "any" : std::to_string(length));
  return "(" + out + ")";
}

/// Throws unless the tensor is there and has this shape, -1 standing for any length above 0.
Tensor& found(Tensors& tensors, const std::string& name, const std::vector<std::int64_t>& shape) {
  const auto it = tensors.find(name);
  if (it == tensors.end()) throw std::runtime_error(name + ": missing");
  const auto& has = it->second.shape;
  if (!std::equal(has.begin(), has.end(), shape.begin(), shape.end(),
                  [](auto a, auto b) { return a > 0 && (b < 0 || a == b); }))
    throw std::runtime_error(name + ": shape " + text(has) + ", expected " + text(shape));
  return it->second;
}

struct Layer {
  Tensor &weight, &bias;
  std::int64_t inputs() const { return weight.shape[1]; }
  std::int64_t outputs() const { return weight.shape[0]; }
};

std::vector<Layer> layers_of(Tensors& tensors) {
  std::vector<Layer> out;
  while (true) {
    const std::string name = "fc" + std::to_string(out.size() + 1);
    if (out.size() >= 2 && !tensors.contains(name + ".weight")) return out;
    Tensor& weight =
        found(tensors, name + ".weight", {-1, out.empty() ? -1 : out.back().outputs()});
    out.push_back({weight, found(tensors, name + ".bias", {weight.shape[0]})});
  }
}

/// y = W x + b for every row of x, with ReLU if the layer is hidden; each thread computes some of
/// the outputs.
void apply(Threads& threads, const Layer& layer, bool hidden, const float* x, std::int64_t rows,
           float* y) {
  const std::int64_t n = layer.outputs(), k = layer.inputs();
  constexpr int row_major = 101, plain = 111, transposed = 112;
  threads.run(threads.count(), [&](int i) {
    const std::int64_t begin = n * i / threads.count(), end = n * (i + 1) / threads.count();
    for (std::int64_t row = 0; row < rows; ++row)
      std::copy(&layer.bias.values[begin], layer.bias.values.data() + end, y + row * n + begin);
    scipy_cblas_sgemm64_(row_major, plain, transposed, rows, end - begin, k, 1, x, k,
                         layer.weight.values.data() + begin * k, k, 1, y + begin, n);
    for (std::int64_t row = 0; hidden && row < rows; ++row)
      for (std::int64_t j = begin; j < end; ++j) y[row * n + j] = std::max(y[row * n + j], 0.0f);
  });
}

/// Runs all batches, and adds every N-th batch's hidden activations to the moments of their layers,
/// of which there are none if nothing is to be observed. Returns the outputs.
std::vector<float> infer(Threads& threads, const std::vector<Layer>& layers,
                         const std::vector<float>& inputs, const Options& options,
                         std::vector<df::Covariance>& moments) {
  const df::Context context = threads.context();
  const std::int64_t samples = std::int64_t(inputs.size()) / layers.front().inputs();
  const std::int64_t width = layers.back().outputs();
  std::vector<std::vector<float>> hidden;
  for (std::size_t i = 0; i + 1 < layers.size(); ++i)
    hidden.emplace_back(std::size_t(options.batch * layers[i].outputs()));
  std::vector<float> outputs(std::size_t(samples * width));

  for (std::int64_t begin = 0; begin < samples; begin += options.batch) {
    const std::int64_t rows = std::min(options.batch, samples - begin);
    const float* x = &inputs[std::size_t(begin * layers.front().inputs())];
    for (std::size_t i = 0; i < hidden.size(); ++i) {
      apply(threads, layers[i], true, x, rows, hidden[i].data());
      x = hidden[i].data();
      if (!moments.empty() && begin / options.batch % options.every == 0)
        moments[i].update(df::ArrayView(x, {rows, layers[i].outputs()}), {}, context);
    }
    apply(threads, layers.back(), false, x, rows, &outputs[std::size_t(begin * width)]);
  }
  return outputs;
}

std::vector<df::Covariance> no_moments_yet(const std::vector<Layer>& layers) {
  std::vector<df::Covariance> out;
  for (std::size_t i = 0; i + 1 < layers.size(); ++i) out.emplace_back(layers[i].outputs());
  return out;
}

/// Neuron order[i] of a layer moves to place i: rows of its weight, its bias, and columns of the
/// weight that reads it.
void reorder(Layer& layer, Layer& next, const std::vector<std::int64_t>& order) {
  const Tensor weight = layer.weight, bias = layer.bias, next_weight = next.weight;
  const std::int64_t n = layer.outputs(), k = layer.inputs();
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int64_t from = order[std::size_t(i)];
    std::copy_n(&weight.values[std::size_t(from * k)], k, &layer.weight.values[std::size_t(i * k)]);
    layer.bias.values[std::size_t(i)] = bias.values[std::size_t(from)];
    for (std::int64_t row = 0; row < next.outputs(); ++row)
      next.weight.values[std::size_t(row * n + i)] =
          next_weight.values[std::size_t(row * n + from)];
  }
}

/// E |x_i - x_{i+1}|^2 summed over neighbours: what the order minimises, from its definition.
double roughness(const df::Covariance& moments) {
  const df::Matrix<double> c = moments.second_moment();
  double out = 0;
  for (std::int64_t i = 0; i + 1 < c.rows(); ++i)
    out += c(i, i) + c(i + 1, i + 1) - 2 * c(i, i + 1);
  return out;
}

/// The largest difference, relative to the largest output; NaN where there is one.
double difference(const std::vector<float>& a, const std::vector<float>& b) {
  float largest = 0, out = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const float away = std::abs(a[i] - b[i]);
    if (std::isnan(away)) return double(away);
    largest = std::max(largest, std::abs(a[i]));
    out = std::max(out, away);
  }
  return double(out) / double(largest);
}

void put_in_order(Threads& threads, Tensors& tensors, std::vector<Layer>& layers,
                  const std::vector<float>& inputs, const Options& options) {
  auto moments = no_moments_yet(layers);
  const auto before = infer(threads, layers, inputs, options, moments);

  const df::Context context = threads.context();
  std::vector<double> costs;
  std::int64_t widest = 0;
  for (std::size_t i = 0; i < moments.size(); ++i) {
    const std::int64_t n = moments[i].size();
    const auto differences = df::Operator::difference(n, 1, df::Boundary::path);
    const auto found = df::descramble_permutation(moments[i], differences, {}, context);
    reorder(layers[i], layers[i + 1], found.permutation);
    std::printf("fc%zu: %lld neurons, %lld samples, roughness %.4g, in order %.4g\n", i + 1,
                static_cast<long long>(n), static_cast<long long>(moments[i].count()),
                found.initial_cost, found.cost);
    costs.push_back(found.cost);
    widest = std::max(widest, n);
  }
  write_safetensors(options.reordered, tensors);

  // The same sums in another order: they differ by some sqrt(n) roundings, and n are allowed.
  moments = no_moments_yet(layers);
  Tensors written = read_safetensors(options.reordered);
  const auto after = infer(threads, layers_of(written), inputs, options, moments);
  const double moved = difference(before, after), bound = double(widest) * std::ldexp(1, -24);
  std::printf("outputs moved by %.1e of the largest, %.1e allowed\n", moved, bound);
  if (!(moved <= bound)) throw std::runtime_error("the outputs have changed");
  for (std::size_t i = 0; i < moments.size(); ++i)
    if (!(std::abs(roughness(moments[i]) - costs[i]) <= 1e-5 * costs[i]))
      throw std::runtime_error("the network written is not as smooth as the order found");
}

void time_observing(Threads& threads, const std::vector<Layer>& layers,
                    const std::vector<float>& inputs, const Options& options) {
  char head[256];
  std::snprintf(head, sizeof head,
                "\"example\": \"mlp\", \"dtype\": \"float32\", \"layers\": %zu, \"n\": %lld, "
                "\"batch\": %lld, \"batches\": %lld, \"every\": %lld, \"threads\": %d",
                layers.size(), static_cast<long long>(layers.front().outputs()),
                static_cast<long long>(options.batch), static_cast<long long>(options.batches),
                static_cast<long long>(options.every), threads.count());
  auto moments = no_moments_yet(layers);
  std::vector<df::Covariance> none;
  std::function<void(bool)> run = [&](bool observe) {
    infer(threads, layers, inputs, options, observe ? moments : none);
  };
  const auto call = [](void* self, int observe) {
    (*static_cast<std::function<void(bool)>*>(self))(observe != 0);
  };
  print_overhead(head, call, &run, options.pairs);
}

void run(const Options& options) {
  if (options.random > 0) return write_safetensors(options.model, random_network(options.random));
  Tensors tensors = read_safetensors(options.model);
  auto layers = layers_of(tensors);
  const std::int64_t width = layers.front().inputs();
  std::vector<float> inputs(std::size_t(options.batches * options.batch * width));
  if (options.inputs.empty()) {
    std::mt19937_64 bits(1);
    std::normal_distribution<float> normal;
    for (float& x : inputs) x = normal(bits);
  } else {
    Tensors given = read_safetensors(options.inputs);
    inputs = std::move(found(given, "inputs", {-1, width}).values);
  }
  scipy_openblas_set_num_threads64_(1);  // in each of ours
  Threads threads(options.threads);
  if (options.pairs > 0)
    time_observing(threads, layers, inputs, options);
  else
    put_in_order(threads, tensors, layers, inputs, options);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    run(parsed(argc, argv));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "mlp: %s\n", error.what());
    return 1;
  }
}
