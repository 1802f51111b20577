#include "descramble_fast/permutation.hpp"

#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include "array.hpp"
#include "search.hpp"
#include "shared.hpp"

namespace descramble_fast::python {

namespace {

using SharedCovariance = Shared<Covariance>;
using Indices = py::array_t<std::int64_t>;

// Permutation, signs, cost, initial cost, bound, route.
using Permuted = py::typing::Tuple<Indices, Indices, double, double, double, Route>;
// Permutation, cost, initial cost, bound, tree bound, steps, why it stopped, route.
using Ordered = py::typing::Tuple<Indices, double, double, double, std::optional<double>,
                                  std::int64_t, py::str, Route>;
// Modes, correlation, score, route.
using Matched = py::typing::Tuple<Indices, py::array_t<double>, double, Route>;

Indices indices(const std::vector<std::int64_t>& values) {
  return vector_to_numpy(std::span<const std::int64_t>(values));
}

Permuted permuted(const Permutation& r) {
  return py::make_tuple(indices(r.permutation), indices(r.signs), r.cost, r.initial_cost, r.bound,
                        r.route);
}

template <class Solve>
Permuted solved(const py::object& object, const char* argument, const Solve& solve) {
  const Array array = view_of(object, argument);
  Permutation r;
  {
    const Released released;
    r = solve(array.view, interruptible(array));
  }
  return permuted(r);
}

struct LayerArrays {
  Array weight;
  std::optional<Array> bias;
  Array next_weight;
  LayerArrays(const py::object& w, const std::optional<py::object>& b, const py::object& next)
      : weight(view_of(w, "W")),
        bias(optional_view_of(b, "bias")),
        next_weight(view_of(next, "W_next")) {
    to_default_stream(weight);
    if (bias) to_default_stream(*bias);
    to_default_stream(next_weight);
  }
  Layer layer() const { return {weight.view, view_in(bias), next_weight.view}; }
};

}  // namespace

void bind_permutation(py::module_& module) {
  module.def(
      "descramble_permutation",
      [](const SharedCovariance& covariance, const Operator& op, std::uint64_t seed,
         std::int64_t restarts, std::optional<double> time_limit,
         const py::object& callback) -> Ordered {
        Search search(seed, restarts, time_limit, callback);
        SmoothOrder r;
        {
          const Released released;
          // A copy, so that callbacks and other threads can read the accumulator meanwhile.
          const Covariance copy = covariance.locked(
              [](const Covariance& c) { return Covariance::from_state(c.state(), {c.device()}); });
          r = descramble_permutation(copy, op, search.options, search.context());
        }
        return py::make_tuple(indices(r.permutation), r.cost, r.initial_cost, r.bound, r.tree_bound,
                              r.steps, search.stopped(r.stopped), r.route);
      },
      py::arg("covariance"), py::arg("operator"), py::arg("seed"), py::arg("restarts"),
      py::arg("time_limit"), py::arg("callback"),
      "Permutation, cost, initial cost, bound, tree bound, steps, why it stopped, route.");
  module.def(
      "permute_trace",
      [](const py::object& weight) {
        return solved(weight, "W", [](const ArrayView& w, const Context& context) {
          return permute_trace(w, context);
        });
      },
      py::arg("weight"), "Permutation, signs, cost, initial cost, bound, route.");
  module.def(
      "permute_diagonal",
      [](const py::object& weight) {
        return solved(weight, "W", [](const ArrayView& w, const Context& context) {
          return permute_diagonal(w, context);
        });
      },
      py::arg("weight"), "Permutation, signs, cost, initial cost, bound, route.");
  module.def(
      "nearest_permutation",
      [](const py::object& p, bool is_signed) {
        return solved(p, "P", [&](const ArrayView& view, const Context& context) {
          return nearest_permutation(view, is_signed, context);
        });
      },
      py::arg("p"), py::arg("signed"), "Permutation, signs, cost, initial cost, bound, route.");
  module.def(
      "match_neurons",
      [](const py::object& similarity, bool is_signed) {
        return solved(similarity, "similarity", [&](const ArrayView& view, const Context& context) {
          return match_neurons(view, is_signed, context);
        });
      },
      py::arg("similarity"), py::arg("signed"),
      "Permutation, signs, cost, initial cost, bound, route.");
  module.def(
      "match_modes",
      [](const SmoothnessDescrambler& d) -> Matched {
        ModeMatch r;
        {
          const Released released;
          r = match_modes(d, interruptible());
        }
        return py::make_tuple(indices(r.modes),
                              vector_to_numpy(std::span<const double>(r.correlation)), r.score,
                              r.route);
      },
      py::arg("descrambler"), "Modes, correlation, score, route.");
  module.def(
      "output_difference",
      [](const py::object& w, const std::optional<py::object>& b, const py::object& next,
         const py::object& w_other, const std::optional<py::object>& b_other,
         const py::object& next_other) {
        const LayerArrays one(w, b, next), other(w_other, b_other, next_other);
        const Released released;
        return output_difference(one.layer(), other.layer(), interruptible());
      },
      py::arg("weight"), py::arg("bias"), py::arg("next_weight"), py::arg("other_weight"),
      py::arg("other_bias"), py::arg("other_next_weight"));
}

}  // namespace descramble_fast::python
