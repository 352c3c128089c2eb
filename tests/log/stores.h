// The stores the contract suite runs on, and what tests do to them behind the log's back.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include <whycache/log.h>

#include "log/file_log.h"
#include "log/memory_log.h"
#include "support/temporary_folder.h"
#include "tests/log/log_contract.h"
