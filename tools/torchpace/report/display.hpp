// The part of results.json that is to be read: every number of the tables as text, the rank of each
// row, and the sentences of the summary. Reports in other languages show these and compute nothing.
#pragma once

#include "results/results.hpp"

namespace torchpace::cli {

/// The member `display` of the file. Takes results that are analyzed.
Json display(const Results& results);

/// to_json with it.
Json to_json_with_display(const Results& results);

}  // namespace torchpace::cli
