// Compiles the functions between two lines for another instruction set than the rest of the library.
// GCC takes it from `#pragma GCC target` at the top of a file, which Clang does not know.
#pragma once

#if defined(__clang__)
#define MEDUSA_PRAGMA(text) _Pragma(#text)
#define MEDUSA_BEGIN_TARGET(features) \
  MEDUSA_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define MEDUSA_END_TARGET _Pragma("clang attribute pop")
#else
#define MEDUSA_BEGIN_TARGET(features)
#define MEDUSA_END_TARGET
#endif
