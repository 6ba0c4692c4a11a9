// Calls a template for a side of the area; others are refused with code 2.
#pragma once

#ifdef LSA_FEW_SIZES  // checked builds are slow to compile
#define FOR_SIZE(call) \
  switch (size) {      \
    case 3: call(3);   \
    case 7: call(7);   \
    case 9: call(9);   \
    default: return 2; \
  }
#else
#define FOR_SIZE(call) \
  switch (size) {      \
    case 3: call(3);   \
    case 5: call(5);   \
    case 7: call(7);   \
    case 9: call(9);   \
    case 11: call(11); \
    case 13: call(13); \
    default: return 2; \
  }
#endif
