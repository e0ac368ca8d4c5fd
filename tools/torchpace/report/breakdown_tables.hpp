// Why one runtime is faster than another: the waterfall, what stands beside it, and the operators
// that differ most. Takes results that are derived; without an explanation the tables are empty.
#pragma once

#include <vector>

#include "report/text_table.hpp"

namespace torchpace::cli {

/// For the terminal the waterfall is drawn; Markdown says how each bar was measured instead.
enum class Form { terminal, markdown };

std::vector<Table> explanation_tables(const Results& results, Form form);

}  // namespace torchpace::cli
