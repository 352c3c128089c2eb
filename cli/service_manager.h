// Messages to the service manager that started this process: sd_notify(3), without libsystemd.
#pragma once

#include <string>

namespace whycache::cli {

// Sends a state such as "READY=1" to the socket that NOTIFY_SOCKET names. Does nothing if there is
// none: the process then runs without a service manager, or that does not wait for messages. A
// message that cannot be sent is lost, as that of any service.
void notify_service_manager(const std::string& state) noexcept;

}  // namespace whycache::cli
