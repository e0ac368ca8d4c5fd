// cpp-openvino: a graph that Python converted, run by OpenVINO's CPU plugin. Needs OpenVINO beside
// LibTorch, of which the Python package has all. Twin: python/torchpace/runtimes/openvino.py, which
// makes the files.
#pragma once

#include <torch/torch.h>

#include <memory>
#include <openvino/openvino.hpp>
#include <string>
#include <utility>
#include <vector>

#include "torchpace/detail/error.hpp"
#include "torchpace/runtimes/detail/engine.hpp"

namespace torchpace {

/// A dtype as OpenVINO names it. Throws c10::Error where it has none.
inline ov::element::Type openvino_type(torch::ScalarType dtype) {
  switch (dtype) {
    case torch::kFloat32:
      return ov::element::f32;
    case torch::kFloat64:
      return ov::element::f64;
    case torch::kFloat16:
      return ov::element::f16;
    case torch::kBFloat16:
      return ov::element::bf16;
    case torch::kInt64:
      return ov::element::i64;
    case torch::kInt32:
      return ov::element::i32;
    case torch::kInt16:
      return ov::element::i16;
    case torch::kInt8:
      return ov::element::i8;
    case torch::kUInt8:
      return ov::element::u8;
    case torch::kBool:
      return ov::element::boolean;
    default:
      TORCH_CHECK(false, "OpenVINO has no type for tensors of ", dtype);
  }
}

/// The reverse. Throws c10::Error.
inline torch::ScalarType dtype_of_openvino(const ov::element::Type& type) {
  for (const auto dtype : kEngineDtypes) {
    if (openvino_type(dtype) == type) return dtype;
  }
  TORCH_CHECK(false, "torch has no dtype for OpenVINO's ", type.to_string());
}

/// The memory of a tensor as one of OpenVINO's, which does not own it. Throws c10::Error where the
/// tensor is not contiguous.
inline ov::Tensor openvino_view(const torch::Tensor& x) {
  TORCH_CHECK(x.is_contiguous(), "OpenVINO: expected a contiguous tensor, found strides ",
              x.strides());
  return {openvino_type(x.scalar_type()), ov::Shape(x.sizes().begin(), x.sizes().end()),
          x.data_ptr()};
}

/// A graph compiled for this process: one stream, as many threads as torch has, each bound to a
/// core of them. Throws ov::Exception.
inline ov::CompiledModel compile_openvino(ov::Core& core, const std::string& path,
                                          torch::ScalarType precision) {
  const CoresOfTeam scope;
  return core.compile_model(
      path, "CPU", ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY),
      ov::num_streams(1), ov::inference_num_threads(torch::get_num_threads()),
      ov::hint::inference_precision(precision == torch::kBFloat16 ? ov::element::bf16
                                                                  : ov::element::f32));
}

/// A request on `inputs`, which run again and again into the same outputs.
inline BoundRun bind_openvino(ov::CompiledModel& compiled, const Tensors& inputs) {
  TORCH_CHECK(compiled.inputs().size() == inputs.size(), "OpenVINO: expected a graph with ",
              inputs.size(), " inputs, found one with ", compiled.inputs().size());
  auto request = std::make_shared<ov::InferRequest>(compiled.create_infer_request());
  BoundRun bound{.run = [request] { request->infer(); }, .inputs = inputs, .outputs = {}};
  for (std::size_t i = 0; i < inputs.size(); ++i)
    request->set_input_tensor(i, openvino_view(inputs[i]));
  request->infer();  // shows the sizes
  for (std::size_t i = 0; i < compiled.outputs().size(); ++i) {
    const auto found = request->get_output_tensor(i);
    const auto& shape = found.get_shape();
    bound.outputs.push_back(torch::empty(std::vector<int64_t>(shape.begin(), shape.end()),
                                         dtype_of_openvino(found.get_element_type())));
    request->set_output_tensor(i, openvino_view(bound.outputs.back()));
  }
  return bound;
}

inline std::vector<Runtime> openvino_runtimes() {
  const auto load = [](const Settings& s, const Model& model) {
    const auto phase = inference_phase(s, "OpenVINO is for inference; cpp-eager trains");
    expect_engine_case("OpenVINO", s);
    const auto path = s.require<std::string>("artifact");
    auto batches = load_batches(s, torch::kCPU);
    // Never unloaded: what its plugin keeps per thread must outlive the threads.
    static auto* const core = new ov::Core();
    auto compiled = std::make_shared<ov::CompiledModel>();
    const auto precision = ExecutionOptions::from(s).precision(dtype_of(s));
    double compile_s = 0;
    try {
      compile_s =
          time_once_s([&] { *compiled = compile_openvino(*core, path, precision); }, torch::kCPU);
    } catch (const ov::Exception& error) {
      TORCH_CHECK(false, "artifact: ", path,
                  ": expected a graph of OpenVINO that it compiles: ", one_line_of(error),
                  "; make it again");
    }
    auto workload =
        engine_workload([compiled](const Tensors& x) { return bind_openvino(*compiled, x); },
                        std::move(batches), model.cost, s, phase);
    workload.compile_s = compile_s;
    workload.engine = std::string("openvino ") + ov::get_openvino_version().buildNumber;
    return workload;
  };
  return {{.name = "cpp-openvino",
           .description = "OpenVINO in C++",
           .load = load,
           .artifact = "openvino"}};
}

}  // namespace torchpace
