// Every log there is lives through the stories of log_contract.h.
#include "log_contract.h"
