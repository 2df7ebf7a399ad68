// Rows of a table.
#include "../native/rows.h"

namespace TUILI_ISA {

static void embed_rows(const void* args, const TuiliStep*, int64_t begin, int64_t end, const TuiliThread*) {
    const TuiliEmbedArgs& a = *(const TuiliEmbedArgs*)args;
    const int n = a.width;
    for (int64_t row = begin; row < end; row++) {
        const int64_t token = a.token_ids[row];
        TUILI_WITH_FLOAT(a.table_dtype, T, TUILI_WITH_FLOAT(a.out_dtype, O, {
            const T* source = TUILI_ROW(const T, a.table, token, n);
            O* target = TUILI_ROW(O, a.out, row, n);
            for (int i = 0; i < n; i += W) store_at(target, i, n, load_at(source, i, n));
        }));
    }
}

}  // namespace TUILI_ISA

TUILI_DEFINE_KIND(embed) = {"embed", sizeof(TuiliEmbedArgs), nullptr, nullptr, TUILI_ISA::embed_rows};
