// Text as tokens of the 65 characters of the usual character-level set, and random batches of it.
// Twin: python/torchpace/data/text.py: the same seed and index give the same batch.
#pragma once

#include <torch/torch.h>

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "torchpace/io/tensor_file.hpp"

namespace torchpace {

/// Newline, space, punctuation, A-Z, a-z; a token is an index into this.
inline constexpr std::string_view kCharacters =
    "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
static_assert(kCharacters.size() == 65);

/// Byte sequences (UTF-8) that mean characters of the set, replaced in this order.
inline constexpr std::pair<std::string_view, std::string_view> kReplacements[] = {
    {"\r\n", "\n"},          {"\r", "\n"},          {"\t", " "},
    {"\xc2\xa0", " "},                               // no-break space
    {"\xe2\x80\x98", "'"},                           // single quotes
    {"\xe2\x80\x99", "'"},   {"\xe2\x80\x93", "-"},  // en dash
    {"\xe2\x80\x94", "--"},                          // em dash, as the plays write it
    {"\xe2\x80\xa6", "..."},
};

/// Tokens of the text, uint8 [n]. What kReplacements does not map into the set is left out.
inline torch::Tensor encode_text(std::string_view text) {
  std::string mapped(text);
  for (const auto& [found, replacement] : kReplacements) {
    std::string next;
    std::size_t begin = 0;
    for (auto at = mapped.find(found); at != std::string::npos; at = mapped.find(found, begin)) {
      next.append(mapped, begin, at - begin).append(replacement);
      begin = at + found.size();
    }
    mapped = next.append(mapped, begin);
  }
  std::vector<uint8_t> tokens;
  tokens.reserve(mapped.size());
  for (const char c : mapped) {
    const auto index = kCharacters.find(c);
    if (index != std::string_view::npos) tokens.push_back(static_cast<uint8_t>(index));
  }
  return torch::tensor(tokens, torch::kUInt8);
}

/// Characters of integer tokens of any shape. Throws c10::Error on a token outside [0, 65).
inline std::string decode_text(const torch::Tensor& tokens) {
  const auto flat = tokens.to(torch::kCPU, torch::kInt64).flatten();
  std::string text;
  for (int64_t i = 0; i < flat.numel(); ++i) {
    const auto token = flat[i].item<int64_t>();
    TORCH_CHECK(token >= 0 && token < 65, "decode_text: expected tokens in [0, 65), got ", token);
    text += kCharacters[static_cast<std::size_t>(token)];
  }
  return text;
}

/// Random windows of a tokenized text.
class TextBatches {
 public:
  /// tokens: uint8 or int64 [n], n > context. Throws c10::Error otherwise.
  TextBatches(torch::Tensor tokens, int64_t batch, int64_t context, int64_t seed)
      : tokens_(tokens.to(torch::kInt64)), batch_(batch), context_(context), seed_(seed) {
    TORCH_CHECK(tokens_.dim() == 1 && tokens_.size(0) > context, "TextBatches: expected more than ",
                context, " tokens [n], got ", tokens_.sizes());
  }

  /// Batch number `index`: input and target, int64 [B, T]; the target is the input one character
  /// on.
  std::pair<torch::Tensor, torch::Tensor> operator()(int64_t index) const {
    auto generator = at::detail::createCPUGenerator(static_cast<uint64_t>(seed_ + index));
    const auto start =
        torch::randint(0, tokens_.size(0) - context_, {batch_}, generator, torch::kInt64);
    const auto positions = start.unsqueeze(1) + torch::arange(context_);
    return {tokens_.take(positions), tokens_.take(positions + 1)};
  }

 private:
  torch::Tensor tokens_;
  int64_t batch_;
  int64_t context_;
  int64_t seed_;
};

/// Tokens that `python -m torchpace.data.text` wrote.
inline torch::Tensor read_tokens(const std::string& path) {
  const auto tensors = read_tensors(path);
  const auto found = tensors.find("tokens");
  TORCH_CHECK(found != tensors.end(), path, ": expected the key tokens, found none");
  return found->second;
}

}  // namespace torchpace
