// A master process and its workers.
#pragma once

#include <chrono>
#include <functional>

namespace service {

// Forks `count` workers, numbered from 0, which run `work`. Starts another worker for each that
// ends, at most once a second for each number.
//
// On SIGTERM or SIGINT, calls `stop` in the master, which has to make `work` return in all workers,
// and returns once they have ended. Kills those that have not ended `grace` later. Workers do not
// get these signals, and are killed if the master dies.
void run_workers(int count, const std::function<void(int number)>& work,
                 const std::function<void()>& stop, std::chrono::milliseconds grace);

}  // namespace service
