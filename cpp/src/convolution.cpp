#include "descramble_fast/convolution.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <new>
#include <numeric>
#include <string>
#include <utility>

#include "call.hpp"
#include "check.hpp"
#include "cpu/convert.hpp"
#include "cpu/convolution.hpp"
#include "cpu/parallel.hpp"
#include "descramble_fast/error.hpp"
#include "message.hpp"

namespace descramble_fast {

struct ConvolutionDescrambler::Components {
  cpu::HalfSpectrum spectrum;
  cpu::BlockEigenpairs pairs;
  // The mode that each component goes to, among channels * places.
  std::vector<std::int64_t> modes;

  cpu::Assignment assignment() const { return {spectrum, pairs, modes}; }
};

namespace {

constexpr double epsilon = std::numeric_limits<double>::epsilon();
constexpr std::int64_t fixed_memory = std::int64_t(1) << 24;
constexpr std::int64_t most_neurons = std::int64_t(1) << 40;

std::string shape_text(std::span<const std::int64_t> shape) {
  std::string text = "(";
  for (std::size_t i = 0; i < shape.size(); ++i) text += message(i > 0 ? ", " : "", shape[i]);
  return text + (shape.size() == 1 ? ",)" : ")");
}

// Of what may overflow: in T double.
template <class T = std::int64_t>
T product(std::span<const std::int64_t> lengths) {
  return std::accumulate(lengths.begin(), lengths.end(), T(1), std::multiplies<T>());
}

void check_shapes(std::span<const std::int64_t> weight, std::span<const std::int64_t> spatial) {
  if (weight.size() < 3 || weight.size() > 5)
    throw InvalidArgument(message("weight: got shape ", shape_text(weight),
                                  ", expected (C_out, C_in, kernel...) with 1 to 3 spatial axes"));
  if (std::ranges::any_of(weight, [](std::int64_t length) { return length < 1; }))
    throw InvalidArgument(
        message("weight: got shape ", shape_text(weight), ", expected no empty axis"));
  if (spatial.size() + 2 != weight.size())
    throw InvalidArgument(message("spatial_shape: got ", shape_text(spatial), ", expected ",
                                  weight.size() - 2, " lengths, one for each spatial axis of a ",
                                  "weight of shape ", shape_text(weight)));
  std::int64_t room = most_neurons / weight[0];
  for (const std::int64_t length : spatial) {
    if (length < 1)
      throw InvalidArgument(
          message("spatial_shape: got ", shape_text(spatial), ", expected lengths of at least 1"));
    if (length > room)
      throw InvalidArgument(message("spatial_shape: got ", shape_text(spatial), " with ", weight[0],
                                    " channels, expected at most ", most_neurons, " neurons"));
    room /= length;
  }
}

Operator default_operator(std::span<const std::int64_t> shape) {
  std::vector<Operator> axes;
  for (const std::int64_t n : shape) axes.push_back(Operator::fourier(n));
  return axes.size() == 1 ? axes.front() : Operator::grid(std::move(axes));
}

void check_grant(std::int64_t bytes, const char* what, const std::string& whose) {
  if (!can_have(bytes))
    throw OutOfMemory(message(what, ": cannot have the ", bytes, " bytes that ", whose, " takes"));
}

// The kernel with its taps wrapped around the grid, scaled by 2^-exponent so that its largest
// number lies in [1, 2) and squares neither overflow nor vanish.
cpu::Kernel wrapped_kernel(const ArrayView& weight, std::span<const std::int64_t> spatial,
                           int& exponent, const Context& context) {
  const Matrix<double> w = fetch(weight, context);
  const auto shape = weight.shape();
  double largest = 0;
  for (std::size_t i = 0; i < w.values().size(); ++i) {
    const double x = w.data()[i];
    if (!std::isfinite(x)) {
      std::vector<std::int64_t> index(shape.size());
      std::int64_t rest = std::int64_t(i);
      for (std::size_t a = shape.size(); a-- > 0; rest /= shape[a]) index[a] = rest % shape[a];
      throw InvalidArgument(message("weight: NaN or infinity at index ", shape_text(index)));
    }
    largest = std::max(largest, std::abs(x));
  }
  exponent = largest > 0 ? std::ilogb(largest) : 0;

  cpu::Kernel out{shape[0], shape[1], {}, {}};
  const std::int64_t taps = product(shape.subspan(2)), size = shape[0] * shape[1];
  std::map<std::array<std::int64_t, 3>, std::int64_t> rows;
  std::vector<std::int64_t> row_of;
  for (std::int64_t t = 0; t < taps; ++t) {
    std::array<std::int64_t, 3> place{};
    std::int64_t rest = t;
    for (std::size_t a = spatial.size(); a-- > 0; rest /= shape[a + 2])
      place[a] = rest % shape[a + 2] % spatial[a];
    const auto [entry, added] = rows.try_emplace(place, std::int64_t(out.places.size()));
    if (added) out.places.push_back(place);
    row_of.push_back(entry->second);
  }
  out.taps = Matrix<double>(std::int64_t(out.places.size()), size, 0);
  for (std::int64_t i = 0; i < size; ++i)
    for (std::int64_t t = 0; t < taps; ++t)
      out.taps(row_of[std::size_t(t)], i) += std::ldexp(w.data()[i * taps + t], -exponent);
  return out;
}

// For each mode of an operator that is a cosine along the last axis that tells the two apart, the
// mode with the sine there; for the sine -2, for a mode without a partner -1.
std::vector<std::int64_t> sines_of(const Operator& op) {
  const ModesDescription description = op.impl().describe();
  const std::int64_t n = op.size();
  std::vector<std::int64_t> mode_of(std::size_t(n), 0);
  for (std::int64_t i = 0; i < n; ++i) mode_of[std::size_t(description.product(i))] = i;
  std::vector<std::int64_t> out(std::size_t(n), -1);
  std::int64_t stride = 1;
  for (std::size_t a = description.axes.size(); a-- > 0;) {
    const cuda::ModeAxis& axis = description.axes[a];
    if (axis.kind == cuda::ModeAxis::fourier) {
      std::vector<std::int64_t> own(std::size_t(axis.n));
      for (std::int64_t i = 0; i < axis.n; ++i) own[std::size_t(axis.base[i])] = i;
      for (std::int64_t i = 0; i < n; ++i) {
        const std::int64_t at = description.product(i);
        const std::int64_t mine = at / stride % axis.n, base = axis.base[mine], k = (base + 1) / 2;
        if (out[std::size_t(i)] != -1 || base % 2 == 0 || 2 * k == axis.n) continue;
        const std::int64_t sine =
            mode_of[std::size_t(at + (own[std::size_t(base + 1)] - mine) * stride)];
        out[std::size_t(i)] = sine;
        out[std::size_t(sine)] = -2;
      }
    }
    stride *= axis.n;
  }
  return out;
}

// One eigenvalue, of the component at `first` or of it and the next.
struct Entry {
  double value;
  std::int64_t first;
  bool paired;
};

// Largest first, ties in the order of frequencies.
std::vector<Entry> sorted_entries(const cpu::HalfSpectrum& spectrum,
                                  const cpu::BlockEigenpairs& pairs) {
  const std::int64_t channels = pairs.values.columns();
  std::vector<Entry> out;
  out.reserve(pairs.values.values().size());
  for (const auto& group : spectrum.groups())
    for (std::int64_t f = 0; f < group.frequencies(); ++f)
      for (std::int64_t j = 0; j < channels; ++j)
        out.push_back({pairs.values(group.first + f, j),
                       channels * (group.offset + f * group.dimensions()) + j * group.dimensions(),
                       !group.real()});
  std::ranges::sort(out, [](const Entry& a, const Entry& b) {
    return a.value != b.value ? a.value > b.value : a.first < b.first;
  });
  return out;
}

// Where each component goes. The blocks of l, all channels together, are filled one after another;
// within a block any place is as good.
std::vector<std::int64_t> matched(const Operator& op, std::int64_t channels,
                                  const std::vector<Entry>& entries) {
  const std::int64_t places = op.size();
  const std::vector<std::int64_t> sines = sines_of(op);
  std::vector<std::int64_t> out(std::size_t(channels * places));
  std::vector<std::int64_t> pairs, singles, pair_modes, single_modes;
  auto entry = entries.begin();
  bool halved = false;  // the first half of `entry` has gone to the block before
  auto block = op.blocks().begin();
  for (std::int64_t begin = 0, end; begin < places; begin = end) {
    end = begin + 1;
    if (block != op.blocks().end() && block->begin == begin) end = block++->end;
    for (auto* const list : {&pairs, &singles, &pair_modes, &single_modes}) list->clear();
    for (std::int64_t room = channels * (end - begin); room > 0;) {
      if (entry->paired && !halved && room > 1) {
        pairs.push_back(entry->first);
        room -= 2;
      } else {
        singles.push_back(entry->first + halved);
        --room;
        halved = entry->paired && !halved;
        if (halved) break;
      }
      ++entry;
    }
    for (std::int64_t i = begin; i < end; ++i)
      if (sines[std::size_t(i)] != -2)
        for (std::int64_t channel = 0; channel < channels; ++channel)
          (sines[std::size_t(i)] < 0 ? single_modes : pair_modes).push_back(channel * places + i);
    const auto sine_of = [&](std::int64_t mode) {
      return mode + sines[std::size_t(mode % places)] - mode % places;
    };
    const std::size_t both = std::min(pairs.size(), pair_modes.size());
    for (std::size_t i = 0; i < both; ++i) {
      out[std::size_t(pairs[i])] = pair_modes[i];
      out[std::size_t(pairs[i] + 1)] = sine_of(pair_modes[i]);
    }
    // What is left, one by one: pairs without a pair of modes come last.
    for (std::size_t i = both; i < pairs.size(); ++i)
      singles.insert(singles.end(), {pairs[i], pairs[i] + 1});
    for (std::size_t i = both; i < pair_modes.size(); ++i)
      single_modes.insert(single_modes.end(), {pair_modes[i], sine_of(pair_modes[i])});
    for (std::size_t i = 0; i < singles.size(); ++i) out[std::size_t(singles[i])] = single_modes[i];
  }
  return out;
}

// Sets the eigenvalues, the blocks and the costs.
void set_spectrum(ConvolutionDescrambler& d, const std::vector<Entry>& entries,
                  const cpu::BlockEigenpairs& pairs, double initial_cost, double terms,
                  int exponent) {
  const std::int64_t n = d.size(), channels = d.channels();
  const auto back = [exponent](double x) { return std::ldexp(x, 2 * exponent); };
  const double largest = std::max(0.0, entries.front().value);
  // The eigensolver's residual, the rounding of W and of W W^H, and what is clipped.
  const double error = pairs.residual + (2 * double(channels) + terms) * epsilon * largest +
                       std::max(0.0, -entries.back().value);
  d.eigenvalues.reserve(std::size_t(n));
  for (const Entry& entry : entries)
    d.eigenvalues.insert(d.eigenvalues.end(), entry.paired ? 2 : 1,
                         back(std::max(0.0, entry.value)));
  const double gap = double(n) * epsilon * d.eigenvalues.front();
  for (std::int64_t begin = 0, end; begin < n; begin = end) {
    end = begin + 1;
    while (end < n && d.eigenvalues[std::size_t(begin)] - d.eigenvalues[std::size_t(end)] <= gap)
      ++end;
    if (end - begin > 1) d.blocks.push_back({begin, end});
  }
  const auto l = d.op.eigenvalues();
  for (std::int64_t i = 0; i < n; ++i)
    d.cost += l[std::size_t(i / channels)] * d.eigenvalues[std::size_t(i)];
  d.bound = d.cost;
  d.cost_error = back(error) * double(channels) * std::accumulate(l.begin(), l.end(), 0.0);
  d.initial_cost = back(initial_cost);
  if (!std::isfinite(d.cost + d.cost_error) || !std::isfinite(d.initial_cost) ||
      !std::isfinite(d.eigenvalues.front()))
    throw InvalidArgument(message("weight: its roughness overflows float64; rescale the weight"));
}

}  // namespace

ConvolutionDescrambler::ConvolutionDescrambler(std::vector<std::int64_t> spatial_shape, Operator op,
                                               std::shared_ptr<const Components> components)
    : spatial_shape(std::move(spatial_shape)),
      op(std::move(op)),
      components_(std::move(components)) {}

std::int64_t ConvolutionDescrambler::size() const {
  return std::int64_t(components_->modes.size());
}

Matrix<double> ConvolutionDescrambler::forward(Matrix<double> rows, const Context& context) const {
  cpu::to_modes(components_->assignment(), rows.values(), op, context);
  return rows;
}

Matrix<double> ConvolutionDescrambler::backward(Matrix<double> rows, const Context& context) const {
  cpu::from_modes(components_->assignment(), rows.values(), op, context);
  return rows;
}

Matrix<double> ConvolutionDescrambler::rotated(const ArrayView&, const double*, bool,
                                               const Context&) const {
  throw BackendError("a convolution's descrambler lies on the CPU");
}

Matrix<double> ConvolutionDescrambler::matrix() const {
  const std::int64_t n = size();
  constexpr std::int64_t small = 1 << 10, most = 1 << 29;
  if (n > most) throw OutOfMemory(message("matrix: cannot have n^2 numbers for n = ", n));
  if (n > small) check_grant(std::int64_t(sizeof(double)) * n * n, "matrix", message("n = ", n));
  Matrix<double> rows(n, n, 0);
  for (std::int64_t i = 0; i < n; ++i) rows(i, i) = 1;
  return backward(std::move(rows), {});
}

ConvolutionDescrambler descramble_conv(const ArrayView& weight,
                                       std::span<const std::int64_t> spatial_shape,
                                       std::optional<Operator> operator_or_default,
                                       const Context& context) {
  const Call call(context);
  constexpr std::int64_t small = 1 << 20;
  check_floating("weight", weight);
  check_shapes(weight.shape(), spatial_shape);
  const std::int64_t places = product(spatial_shape), channels = weight.shape()[0];
  if (operator_or_default && operator_or_default->size() != places)
    throw InvalidArgument(message("operator: acts on ", operator_or_default->size(),
                                  " places, a grid of ", shape_text(spatial_shape), " has ",
                                  places));
  const std::int64_t bytes =
      descramble_conv_memory(weight.shape(), spatial_shape, cpu::threads_of(context));
  if (bytes - fixed_memory >= small)
    check_grant(bytes, "descramble_conv",
                message("a convolution of ", channels, " channels on a grid of ",
                        shape_text(spatial_shape)));
  const Operator op = operator_or_default ? *operator_or_default : default_operator(spatial_shape);

  int exponent = 0;
  const cpu::Kernel kernel = wrapped_kernel(weight, spatial_shape, exponent, context);
  auto components = std::make_shared<ConvolutionDescrambler::Components>(
      ConvolutionDescrambler::Components{cpu::HalfSpectrum(spatial_shape), {}, {}});
  components->pairs = cpu::solve_frequencies(components->spectrum, kernel, context);
  const cpu::BlockEigenpairs& pairs = components->pairs;
  const std::vector<Entry> entries = sorted_entries(components->spectrum, pairs);
  components->modes = matched(op, channels, entries);
  ConvolutionDescrambler out({spatial_shape.begin(), spatial_shape.end()}, op, components);
  const double initial_cost =
      cpu::trace_with_spectrum(op.impl(), components->spectrum, pairs.traces, context);
  set_spectrum(out, entries, pairs, initial_cost, double(kernel.columns * kernel.taps.rows()),
               exponent);
  out.orthogonality_error = pairs.orthogonality_error;
  out.route = pairs.route;
  record_fetch("weight", weight, out.route);
  call.log("descramble_conv", out.route);
  return out;
}

std::int64_t descramble_conv_memory(std::span<const std::int64_t> weight_shape,
                                    std::span<const std::int64_t> spatial_shape, int threads) {
  check_shapes(weight_shape, spatial_shape);
  const std::int64_t channels = weight_shape[0], places = product(spatial_shape);
  const std::int64_t frequencies = cpu::HalfSpectrum::count(spatial_shape);
  const auto taps = product<double>(weight_shape.subspan(2));
  const double bytes = 16 * double(channels) * double(channels) * double(frequencies) +
                       (64 * double(channels) + 100) * double(places) +
                       24 * product<double>(weight_shape) +
                       double(cpu::threads_of({threads, {}})) *
                           cpu::frequency_workspace(channels, weight_shape[1], taps) +
                       double(fixed_memory);
  return bytes < 0x1p62 ? std::int64_t(bytes) : std::numeric_limits<std::int64_t>::max();
}

}  // namespace descramble_fast
