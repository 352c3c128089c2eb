// The reader of pickles refuses arbitrary bytes, or makes a value that the reader of values
// accepts.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include <whycache/value.h>

#include "original/unpickle.h"

using namespace whycache;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::string value;
  try {
    value = value_of_pickle({reinterpret_cast<const char*>(data), size});
  } catch (const Error&) {
    return 0;
  }
  for (ValueReader reader(value); !reader.done();) reader.next();
  return 0;
}
