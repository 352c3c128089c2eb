#include "cli/position.h"

#include <fmt/format.h>

#include <string_view>

#include "state/file/state_info.h"

namespace whycache::cli {

std::optional<PositionProblem> find_position_problem(const StateInfo& state,
                                                     const std::string& path, const Extent& log,
                                                     const std::string& name) {
  // An update keeps the items of a machine if the log is empty, since a disk may not be mounted.
  const std::string update = log.head == 0 && state.item_count > 0
                                 ? "`whycache update --accept-replaced-log`"
                                 : "`whycache update`";
  if (log.uuid != state.log_uuid) {
    return PositionProblem{
        fmt::format("the state is of another log: path={} state_log={} state_uuid={} log={} "
                    "log_uuid={}{}",
                    path, state.log_name, to_string(state.log_uuid), name, to_string(log.uuid),
                    log.head == 0 ? ", which is empty" : ""),
        "check --log and --state; if the log was replaced on purpose, " + update +
            " builds a new state from it"};
  }
  if (state.applied_id > log.head) {
    return PositionProblem{
        fmt::format("the log has lost updates that this machine has applied: applied_id={} head={}",
                    state.applied_id, log.head),
        "restore the log from a newer copy, or run " + update +
            " to rebuild the state from this one"};
  }
  return std::nullopt;
}

}  // namespace whycache::cli
