// cpp-onnxruntime: a graph that Python converted, run by ONNX Runtime's CPU provider. Needs the C++
// headers of ONNX Runtime beside LibTorch; its library is opened when it is first asked for, by the
// path TORCHPACE_ONNXRUNTIME_LIBRARY: that of the Python package has no name that a program could
// link. Twin: python/torchpace/runtimes/onnxruntime.py, which makes the files.
#pragma once

#define ORT_API_MANUAL_INIT
#include <dlfcn.h>
#include <onnxruntime_cxx_api.h>
#include <torch/torch.h>

#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "torchpace/detail/error.hpp"
#include "torchpace/runtimes/detail/engine.hpp"

namespace torchpace {

/// Opens the library, once, and returns its version. Throws c10::Error where it is not there or
/// older than its headers.
inline const std::string& open_onnxruntime(const std::string& library) {
  static const std::string version = [&] {
    setenv("ORT_DISABLE_TELEMETRY", "1", /*overwrite=*/0);  // else it reports home
    void* const handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
    TORCH_CHECK(handle != nullptr, "ONNX Runtime: expected its library, found: ", dlerror());
    const auto base = reinterpret_cast<const OrtApiBase* (*)()>(dlsym(handle, "OrtGetApiBase"));
    TORCH_CHECK(base != nullptr, library, ": expected ONNX Runtime, found no OrtGetApiBase");
    const OrtApi* const api = base()->GetApi(ORT_API_VERSION);
    TORCH_CHECK(api != nullptr, library, ": expected ONNX Runtime 1.", ORT_API_VERSION,
                " or newer, as its headers, found ", base()->GetVersionString());
    Ort::InitApi(api);
    return base()->GetVersionString();
  }();
  return version;
}

/// A dtype as ONNX names it. Throws c10::Error where it has none.
inline ONNXTensorElementDataType onnx_type(torch::ScalarType dtype) {
  switch (dtype) {
    case torch::kFloat32:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    case torch::kFloat64:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE;
    case torch::kFloat16:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
    case torch::kBFloat16:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
    case torch::kInt64:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
    case torch::kInt32:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
    case torch::kInt16:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16;
    case torch::kInt8:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;
    case torch::kUInt8:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
    case torch::kBool:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;
    default:
      TORCH_CHECK(false, "ONNX has no type for tensors of ", dtype);
  }
}

/// The reverse. Throws c10::Error.
inline torch::ScalarType dtype_of_onnx(ONNXTensorElementDataType type) {
  for (const auto dtype : kEngineDtypes) {
    if (onnx_type(dtype) == type) return dtype;
  }
  TORCH_CHECK(false, "torch has no dtype for ONNX's type ", static_cast<int>(type));
}

/// The memory of a contiguous tensor as one of ONNX Runtime's, which does not own it.
inline Ort::Value onnx_view(const torch::Tensor& x) {
  TORCH_CHECK(x.is_contiguous(), "ONNX Runtime: expected a contiguous tensor, found strides ",
              x.strides());
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  return Ort::Value::CreateTensor(memory, x.data_ptr(), x.nbytes(), x.sizes().data(),
                                  static_cast<size_t>(x.dim()), onnx_type(x.scalar_type()));
}

/// A graph compiled for this process, with as many threads as torch has, on the same cores. Throws
/// Ort::Exception.
inline Ort::Session compile_onnx(const std::string& path) {
  // Never destroyed: its threads would be joined where a process ends without that.
  static auto* const env = new Ort::Env(ORT_LOGGING_LEVEL_ERROR, "torchpace");
  Ort::SessionOptions options;
  options.SetIntraOpNumThreads(torch::get_num_threads());
  options.SetInterOpNumThreads(1);
  if (const auto cores = other_cores(); !cores.empty())
    options.AddConfigEntry("session.intra_op_thread_affinities", cores.c_str());
  return {*env, path.c_str(), options};
}

/// A run on `inputs`, again and again into the same outputs.
inline BoundRun bind_onnx(Ort::Session& session, const Tensors& inputs) {
  const Ort::AllocatorWithDefaultOptions names;
  TORCH_CHECK(session.GetInputCount() == inputs.size(), "ONNX Runtime: expected a graph with ",
              inputs.size(), " inputs, found one with ", session.GetInputCount());
  const auto binding = std::make_shared<Ort::IoBinding>(session);
  for (size_t i = 0; i < inputs.size(); ++i)
    binding->BindInput(session.GetInputNameAllocated(i, names).get(), onnx_view(inputs[i]));
  const auto output_name = [&](size_t i) { return session.GetOutputNameAllocated(i, names); };
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  for (size_t i = 0; i < session.GetOutputCount(); ++i)
    binding->BindOutput(output_name(i).get(), memory);
  const auto run = [&session, binding] { session.Run(Ort::RunOptions{nullptr}, *binding); };
  run();  // shows the sizes
  BoundRun bound{.run = run, .inputs = inputs, .outputs = {}};
  const auto found = binding->GetOutputValues();
  binding->ClearBoundOutputs();
  for (size_t i = 0; i < found.size(); ++i) {
    const auto info = found[i].GetTensorTypeAndShapeInfo();
    bound.outputs.push_back(torch::empty(info.GetShape(), dtype_of_onnx(info.GetElementType())));
    binding->BindOutput(output_name(i).get(), onnx_view(bound.outputs.back()));
  }
  return bound;
}

inline std::vector<Runtime> onnxruntime_runtimes() {
  const auto load = [](const Settings& s, const Model& model) {
    const auto phase = inference_phase(s, "ONNX Runtime is for inference; cpp-eager trains");
    expect_engine_case("ONNX Runtime", s);
    const auto path = s.require<std::string>("artifact");
    auto batches = load_batches(s, torch::kCPU);
    const auto version = open_onnxruntime(TORCHPACE_ONNXRUNTIME_LIBRARY);
    auto session = std::make_shared<Ort::Session>(nullptr);
    double compile_s = 0;
    try {
      compile_s = time_once_s([&] { *session = compile_onnx(path); }, torch::kCPU);
    } catch (const Ort::Exception& error) {
      TORCH_CHECK(false, "artifact: ", path, ": expected a graph of ONNX, found one that does not ",
                  "load: ", one_line_of(error), "; make it again");
    }
    auto workload = engine_workload([session](const Tensors& x) { return bind_onnx(*session, x); },
                                    std::move(batches), model.cost, s, phase);
    workload.compile_s = compile_s;
    workload.engine = "onnxruntime " + version;
    return workload;
  };
  return {{.name = "cpp-onnxruntime",
           .description = "ONNX Runtime in C++",
           .load = load,
           .artifact = "onnx"}};
}

}  // namespace torchpace
