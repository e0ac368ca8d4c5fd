#include "analysis/operator_groups.hpp"

#include <map>
#include <string_view>

#include "support/strings.hpp"

namespace torchpace::cli {
namespace {

// Without namespace, `_out`, `_`, `_forward` and `_backward`.
constexpr const char* kMatrixNames =
    "mm bmm addmm addbmm baddbmm addmv mv dot vdot matmul linear _addmm_activation einsum bilinear "
    "convolution _convolution conv1d conv2d conv3d mkldnn_convolution mkldnn_linear _mkl_linear "
    "_linear_pointwise _convolution_pointwise cudnn_convolution _scaled_mm";
constexpr const char* kReductionNames =
    "sum mean max min amax amin argmax argmin norm linalg_vector_norm var var_mean std cumsum "
    "layer_norm native_layer_norm batch_norm native_batch_norm _batch_norm_impl_index "
    "cudnn_batch_norm group_norm native_group_norm rms_norm softmax _softmax log_softmax "
    "_log_softmax nll_loss nll_loss_nd nll_loss2d cross_entropy_loss embedding_dense logsumexp";
constexpr const char* kElementwiseNames =
    "add sub rsub mul div addcmul addcdiv lerp neg abs sign pow sqrt rsqrt reciprocal exp log "
    "log1p sin cos tanh sigmoid relu threshold gelu silu hardtanh leaky_relu elu softplus clamp "
    "clamp_min clamp_max maximum minimum where eq ne lt le gt ge logical_and logical_or "
    "logical_not bitwise_not isnan isfinite masked_fill dropout native_dropout bernoulli square";
constexpr const char* kCopyNames =
    "copy clone contiguous to _to_copy _copy_from t transpose permute movedim view _unsafe_view "
    "reshape _reshape_alias flatten as_strided slice select narrow split split_with_sizes chunk "
    "unbind unflatten cat stack expand expand_as repeat squeeze unsqueeze empty empty_like "
    "empty_strided new_empty new_empty_strided new_zeros zeros zeros_like ones ones_like full "
    "full_like zero fill resize set detach alias arange tril triu embedding index_select index "
    "gather scatter pad constant_pad_nd item _local_scalar_dense lift_fresh _reinterpret_tensor";

const std::map<std::string, const char*>& groups() {
  static const auto all = [] {
    std::map<std::string, const char*> found;
    for (const auto& [group, names] : {std::pair{kMatrix, kMatrixNames},
                                       {kReductions, kReductionNames},
                                       {kElementwise, kElementwiseNames},
                                       {kCopies, kCopyNames}}) {
      for (auto& name : split_list(names, ' ')) found.emplace(std::move(name), group);
    }
    return found;
  }();
  return all;
}

/// `aten::native_layer_norm_backward` is `native_layer_norm`, `aten::copy_` is `copy`.
std::string plain_name(std::string name) {
  name.erase(0, name.rfind("::") + 2);
  for (const std::string_view end : {"_out", "_", "_data", "_backward", "_forward"}) {
    if (name.size() > end.size() && name.ends_with(end)) name.erase(name.size() - end.size());
  }
  return name;
}

}  // namespace

bool is_operator(const std::string& name) {
  return name.find("::") != std::string::npos && name.find("autograd::") == std::string::npos;
}

std::string group_of(const OperatorTime& time) {
  if (time.part == kOptimizer) return kOptimizer;
  if (time.name.find("attention") != std::string::npos) return kAttention;
  const auto found = groups().find(plain_name(time.name));
  return found == groups().end() ? kOther : found->second;
}

}  // namespace torchpace::cli
