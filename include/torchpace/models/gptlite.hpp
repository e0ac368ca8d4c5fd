// Small GPT: token + position embedding, L pre-norm blocks, norm, head. A block is
//   x += attention(norm(x)); x += feed_forward(norm(x)).
// Source: Radford et al. 2019 (GPT-2), with ReLU and without biases in QKV.
// Twin: python/torchpace/models/gptlite.py.
// Dimensions: B batch, T tokens, C width, H heads, D head size C / H, V vocabulary, L layers.
#pragma once

#include <torch/torch.h>

#include <cmath>
#include <limits>
#include <string>
#include <tuple>

#include "torchpace/model.hpp"

namespace torchpace {

enum class Attention { kSdpa, kExplicit };

struct GptliteOptions {
  int64_t layers = 4;       // L
  int64_t width = 128;      // C
  int64_t heads = 4;        // H
  int64_t context = 64;     // largest T
  int64_t vocabulary = 65;  // V
  double dropout = 0;       // on attention weights and both residual branches
  Attention attention = Attention::kSdpa;
  bool causal = true;
  double scale = 0;  // of the attention scores; 0 means D^-0.5
};

struct GptliteAttentionImpl : torch::nn::Module {
  explicit GptliteAttentionImpl(const GptliteOptions& o)
      : options(o),
        scale(o.scale != 0 ? o.scale : 1 / std::sqrt(static_cast<double>(o.width / o.heads))) {
    qkv = register_module(
        "qkv", torch::nn::Linear(torch::nn::LinearOptions(o.width, 3 * o.width).bias(false)));
    projection = register_module("projection", torch::nn::Linear(o.width, o.width));
  }

  /// x: [B, T, C]. Returns [B, T, C].
  torch::Tensor forward(const torch::Tensor& x) {
    const auto b = x.size(0), t = x.size(1), c = x.size(2);
    const auto heads =
        qkv(x).view({b, t, 3, options.heads, c / options.heads}).permute({2, 0, 3, 1, 4});
    const auto q = heads[0], k = heads[1], v = heads[2];  // [B, H, T, D]
    const auto y =
        options.attention == Attention::kSdpa ? sdpa(q, k, v) : explicit_attention(q, k, v);
    auto out = projection(y.transpose(1, 2).reshape({b, t, c}));
    return options.dropout > 0 ? torch::dropout(out, options.dropout, is_training()) : out;
  }

  GptliteOptions options;
  double scale;
  torch::nn::Linear qkv{nullptr}, projection{nullptr};  // weights [3C, C], [C, C]

 private:
  torch::Tensor sdpa(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v) const {
    return at::scaled_dot_product_attention(q, k, v, {}, is_training() ? options.dropout : 0.0,
                                            options.causal, scale);
  }

  torch::Tensor explicit_attention(const torch::Tensor& q, const torch::Tensor& k,
                                   const torch::Tensor& v) {
    auto scores = torch::matmul(q, k.transpose(-2, -1)) * scale;  // [B, H, T, T]
    if (options.causal)
      scores = scores.masked_fill(future(q), -std::numeric_limits<double>::infinity());
    auto weights = torch::softmax(scores, -1);
    if (options.dropout > 0) weights = torch::dropout(weights, options.dropout, is_training());
    return torch::matmul(weights, v);
  }

  /// True above the diagonal, [T, T]; kept for the next call. Not a buffer: it is no part of the
  /// state.
  torch::Tensor future(const torch::Tensor& q) {
    const auto t = q.size(2);
    if (!future_.defined() || future_.size(0) != t || future_.device() != q.device()) {
      future_ = torch::ones({t, t}, q.options().dtype(torch::kBool)).triu(1);
    }
    return future_;
  }

  torch::Tensor future_;
};
TORCH_MODULE(GptliteAttention);

struct GptliteFeedForwardImpl : torch::nn::Module {
  explicit GptliteFeedForwardImpl(const GptliteOptions& o) : dropout(o.dropout) {
    expand = register_module("expand", torch::nn::Linear(o.width, 4 * o.width));
    contract = register_module("contract", torch::nn::Linear(4 * o.width, o.width));
  }

  /// x: [B, T, C]. Returns [B, T, C].
  torch::Tensor forward(const torch::Tensor& x) {
    auto y = contract(torch::relu(expand(x)));
    return dropout > 0 ? torch::dropout(y, dropout, is_training()) : y;
  }

  double dropout;
  torch::nn::Linear expand{nullptr}, contract{nullptr};  // weights [4C, C], [C, 4C]
};
TORCH_MODULE(GptliteFeedForward);

struct GptliteBlockImpl : torch::nn::Module {
  explicit GptliteBlockImpl(const GptliteOptions& o) {
    norm1 = register_module("norm1", torch::nn::LayerNorm(torch::nn::LayerNormOptions({o.width})));
    attention = register_module("attention", GptliteAttention(o));
    norm2 = register_module("norm2", torch::nn::LayerNorm(torch::nn::LayerNormOptions({o.width})));
    feed_forward = register_module("feed_forward", GptliteFeedForward(o));
  }

  /// x: [B, T, C]. Returns [B, T, C].
  torch::Tensor forward(torch::Tensor x) {
    x = x + attention(norm1(x));
    return x + feed_forward(norm2(x));
  }

  torch::nn::LayerNorm norm1{nullptr}, norm2{nullptr};
  GptliteAttention attention{nullptr};
  GptliteFeedForward feed_forward{nullptr};
};
TORCH_MODULE(GptliteBlock);

struct GptliteImpl : torch::nn::Module {
  explicit GptliteImpl(GptliteOptions o = {}) : options(o) {
    TORCH_CHECK(o.layers > 0 && o.heads > 0 && o.context > 0 && o.vocabulary > 0,
                "Gptlite: expected layers, heads, context and vocabulary above 0, got ", o.layers,
                ", ", o.heads, ", ", o.context, ", ", o.vocabulary);
    TORCH_CHECK(o.width > 0 && o.width % o.heads == 0, "Gptlite: expected a width that ", o.heads,
                " heads divide, got ", o.width);
    token_embedding =
        register_module("token_embedding", torch::nn::Embedding(o.vocabulary, o.width));
    position_embedding =
        register_module("position_embedding", torch::nn::Embedding(o.context, o.width));
    blocks = register_module("blocks", torch::nn::ModuleList());
    for (int64_t i = 0; i < o.layers; ++i) blocks->push_back(GptliteBlock(o));
    norm = register_module("norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({o.width})));
    head = register_module("head", torch::nn::Linear(o.width, o.vocabulary));
    // As GPT-2: with PyTorch's N(0, 1) embeddings the first blocks would hardly matter.
    for (const auto& p : named_parameters()) {
      if (p.value().dim() == 2) torch::nn::init::normal_(p.value(), 0, 0.02);
      if (p.key().ends_with("bias")) torch::nn::init::zeros_(p.value());
    }
  }

  /// tokens: [B, T], int64, T at most the context. Returns logits [B, T, V], no softmax.
  /// Throws c10::Error on another rank or a T above the context.
  torch::Tensor forward(const torch::Tensor& tokens) {
    TORCH_CHECK(tokens.dim() == 2 && tokens.size(1) <= options.context,
                "Gptlite: expected tokens [B, T <= ", options.context, "], got ", tokens.sizes());
    auto x = token_embedding(tokens) +
             position_embedding->weight.slice(0, 0, tokens.size(1));  // [B, T, C]
    for (const auto& block : *blocks) x = block->as<GptliteBlock>()->forward(x);
    return head(norm(x));
  }

  /// Forward of B x T tokens: 2 B T (L 12 C^2 + C V) for the weights and 4 B L T^2 C for attention
  /// (the full square, causal or not). Backward twice that: every product's two inputs need their
  /// gradients.
  Cost cost(int64_t batch, int64_t tokens, int64_t element_bytes = 4) const {
    const auto b = static_cast<double>(batch), t = static_cast<double>(tokens),
               c = static_cast<double>(options.width), l = static_cast<double>(options.layers),
               v = static_cast<double>(options.vocabulary),
               context = static_cast<double>(options.context),
               e = static_cast<double>(element_bytes);
    const double forward = 2 * b * t * (12 * l * c * c + c * v) + 4 * b * l * t * t * c;
    const double parameter_bytes =
        e * (v * c + context * c + l * (12 * c * c + 10 * c) + 2 * c + c * v + v);
    return {.forward_flops = forward,
            .training_flops = 3 * forward,
            .parameter_bytes = parameter_bytes,
            .forward_minimum_bytes = parameter_bytes + 8 * b * t + e * b * t * v,
            .training_minimum_bytes = 6 * parameter_bytes + 16 * b * t,
            .items = b * t,
            .item = "tokens"};
  }

  GptliteOptions options;
  torch::nn::Embedding token_embedding{nullptr},
      position_embedding{nullptr};  // weights [V, C], [context, C]
  torch::nn::ModuleList blocks{nullptr};
  torch::nn::LayerNorm norm{nullptr};
  torch::nn::Linear head{nullptr};  // weight [V, C]
};
TORCH_MODULE(Gptlite);

/// Settings: layers, width, heads, context, batch; vocabulary, dropout, attention (sdpa, explicit),
/// causal, scale.
inline Model make_gptlite(const Settings& s) {
  const auto attention = s.get("attention", "sdpa");
  TORCH_CHECK(attention == "sdpa" || attention == "explicit",
              "attention: expected sdpa or explicit, got '", attention, "'");
  Gptlite gptlite(
      GptliteOptions{.layers = s.require<int64_t>("layers"),
                     .width = s.require<int64_t>("width"),
                     .heads = s.require<int64_t>("heads"),
                     .context = s.require<int64_t>("context"),
                     .vocabulary = s.get<int64_t>("vocabulary", 65),
                     .dropout = s.get<double>("dropout", 0),
                     .attention = attention == "sdpa" ? Attention::kSdpa : Attention::kExplicit,
                     .causal = s.get<bool>("causal", true),
                     .scale = s.get<double>("scale", 0)});
  return {.module = gptlite.ptr(),
          .forward = [gptlite](const torch::Tensor& x) mutable { return gptlite->forward(x); },
          .loss =
              [](const torch::Tensor& logits, const torch::Tensor& target) {
                return torch::nn::functional::cross_entropy(logits.view({-1, logits.size(-1)}),
                                                            target.view({-1}));
              },
          .cost = gptlite->cost(s.require<int64_t>("batch"), s.require<int64_t>("context"),
                                element_bytes(s))};
}

}  // namespace torchpace
