// A log that is written in Python, as the library sees it.
#pragma once

#include "module.h"

#include <whycache/log.h>

#include <memory>

namespace whycache::python {

// `adapter` is a whycache._log.Adapter. Returns null with an exception set if its name() fails.
std::unique_ptr<Log> make_python_log(ModuleState& module, PyObject* adapter);

}  // namespace whycache::python
