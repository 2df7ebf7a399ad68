// Rows of a table.
#include "../native/rows.h"

namespace TUILI_ISA {

static void embed_rows(const void* args, const TuiliStep*, int64_t begin, int64_t end, const TuiliThread*) {
    const TuiliEmbedArgs& a = *(const TuiliEmbedArgs*)args;
    const int n = a.width;
    for (int64_t row = begin; row < end; row++) {
        const int64_t entry = a.token_ids[row] - a.first;
        TUILI_WITH_FLOAT(a.table_dtype, T, TUILI_WITH_FLOAT(a.out_dtype, O, {
            const bool held = entry >= 0 && entry < a.rows;
            const T* source = TUILI_ROW(const T, a.table, held ? entry : 0, n);
            O* target = TUILI_ROW(O, a.out, row, n);
            if (held) {
                for (int i = 0; i < n; i += W) store_at(target, i, n, load_at(source, i, n));
            } else {
                memset(target, 0, n * sizeof(O));
            }
        }));
    }
}

}  // namespace TUILI_ISA

TUILI_DEFINE_KIND(embed) = {"embed", sizeof(TuiliEmbedArgs), nullptr, nullptr, TUILI_ISA::embed_rows};
